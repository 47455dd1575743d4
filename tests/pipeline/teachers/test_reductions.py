"""Reductions of block outputs, against numpy."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch

from pipeline.config import FeatureConfig
from pipeline.teachers.reductions import REDUCTIONS, block_maps, value_range
from storage_schemas.errors import ConfigError


def config_of(reduce, grid=2, **fields):
    """Settings of one feature."""
    return FeatureConfig.model_validate(
        {"block": "layer1", "reduce": reduce, "grid": grid, **fields}
    )


def outputs(count=40, channels=6):
    """Correlated block outputs, (count, channels, 4, 4)."""
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(channels, channels))
    flat = rng.normal(2, 1, (count, channels, 16))
    return torch.from_numpy(np.einsum("dc,bcp->bdp", mix, flat).reshape(count, channels, 4, 4))


def test_the_table_has_every_reduction_of_the_settings():
    """A setting without a reduction, or one that no setting names, would be a defect."""
    assert set(REDUCTIONS) == set(get_args(FeatureConfig.model_fields["reduce"].annotation))


def test_maps_are_means_over_cells():
    """Channel means and pooled maps are those of numpy; a small output is not blown up."""
    values = outputs()
    cells = values.numpy().reshape(40, 6, 2, 2, 2, 2).mean(axis=(3, 5))
    np.testing.assert_allclose(block_maps(config_of("pool"), values), cells, atol=1e-5)
    means = block_maps(config_of("channel_mean"), values)
    np.testing.assert_allclose(means, cells.mean(axis=1, keepdims=True), atol=1e-5)
    assert block_maps(config_of("pool", 9), values).shape == (40, 6, 4, 4)
    assert block_maps(config_of("pool"), values[:, :, 0, 0]).shape == (40, 6, 1, 1)
    with pytest.raises(ConfigError, match="must return"):
        block_maps(config_of("pool"), values[:, :, 0])


def test_principal_components_are_numpys():
    """Basis and codes are those of the eigenvectors of numpy's covariance, batch by batch."""
    config = config_of("pca", components=3)
    maps = block_maps(config, outputs())
    fit = REDUCTIONS["pca"].fit(config, 6)
    for batch in maps.split(7):
        fit.update(batch)
    found = fit.result()
    vectors = maps.double().numpy().transpose(0, 2, 3, 1).reshape(-1, 6)
    values, basis = np.linalg.eigh(np.cov(vectors.T, bias=True))
    basis = basis.T[::-1][:3]
    basis *= np.sign(basis[np.arange(3), np.abs(basis).argmax(axis=1)])[:, None]
    np.testing.assert_allclose(found.constants["basis"], basis, atol=1e-9)
    np.testing.assert_allclose(found.deviation**2, values[::-1][:3], rtol=1e-9)
    (codes,) = REDUCTIONS["pca"].apply(maps, found.constants)
    expected = (vectors - vectors.mean(axis=0)) @ basis.T
    np.testing.assert_allclose(
        codes.numpy().transpose(0, 2, 3, 1).reshape(-1, 3), expected, atol=1e-4
    )
    with pytest.raises(ConfigError, match="at most 2"):
        REDUCTIONS["pca"].fit(config, 2)


def test_averaging_and_projecting_commute():
    """Codes of an averaged map are the averaged codes of the map."""
    config = config_of("pca", grid=4, components=3)
    whole = block_maps(config, outputs())
    fit = REDUCTIONS["pca"].fit(config, 6)
    fit.update(whole)
    constants = fit.result().constants
    codes = REDUCTIONS["pca"].apply(whole, constants)[0].mean(dim=(2, 3))
    (averaged,) = REDUCTIONS["pca"].apply(whole.mean(dim=(2, 3), keepdim=True), constants)
    np.testing.assert_allclose(averaged[:, :, 0, 0], codes, atol=1e-4)


def test_codewords_of_a_block_that_never_answered_are_finite():
    """Zeros in the fit give a dictionary, with which another answer can be named."""
    config = config_of("codewords", dictionary={"steps": 1})
    fit = REDUCTIONS["codewords"].fit(config, 6)
    fit.update(torch.zeros(5, 6, 2, 2))
    ids, means = REDUCTIONS["codewords"].apply(outputs().float(), fit.result().constants)
    assert ids.shape == (40, 1, 4, 4)
    assert means.shape == (40, 12, 1, 1)
    assert means.isfinite().all()


def test_the_range_holds_what_was_seen():
    """Six deviations on either side, and a step for a channel that never moved."""
    maps = torch.randn(500, 3, 1, 1)
    maps[:, 2] = 7
    fit = REDUCTIONS["pool"].fit(config_of("pool", dtype="uint8"), 3)
    fit.update(maps)
    smallest, step = value_range(fit.result())
    assert (maps.amin(dim=(0, 2, 3)).numpy() > smallest).all()
    assert (maps.amax(dim=(0, 2, 3)).numpy() < smallest + 254 * step).all()
    assert (step > 0).all()


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"reduce": "pca"}, "components"),
        ({"reduce": "pool", "components": 3}, "components"),
        ({"reduce": "codewords"}, "dictionary must be given"),
        ({"reduce": "pca", "components": 3, "dictionary": {}}, "dictionary must be left out"),
        ({"reduce": "codewords", "dictionary": {}, "dtype": "uint8"}, "dtype"),
        ({"block": "a..b"}, "block"),
        ({"grid": 0}, "grid"),
        ({"dtype": "float64"}, "dtype"),
    ],
)
def test_settings_that_cannot_be_are_refused(fields, word):
    """Each is named."""
    with pytest.raises(ValueError, match=word):
        config_of(**({"reduce": "pool"} | fields))
