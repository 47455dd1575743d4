from __future__ import annotations

import numpy as np
import pytest

from storage_schemas.mixing import MixPools, symmetric_beta_quantile
from storage_schemas.view_recipe import Mix, ViewRecipe


@pytest.mark.parametrize("alpha", [0.05, 0.2, 0.4, 1.0, 2.0, 8.0])
def test_mixing_weights_are_beta_distributed(alpha):
    """Quantiles at a fine grid have the mean, variance and 4th moment of Beta(alpha, alpha)."""
    x = symmetric_beta_quantile(alpha, (np.arange(200_000) + 0.5) / 200_000)
    assert np.all(np.diff(x) >= 0)
    assert x.mean() == pytest.approx(0.5, abs=1e-9)
    assert x.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=2e-4)
    raw_fourth = np.prod([(alpha + r) / (2 * alpha + r) for r in range(4)])
    assert (x**4).mean() == pytest.approx(raw_fourth, rel=2e-4)


def test_arcsine_quantiles():
    """Beta(1/2, 1/2) has the closed form sin^2(pi u / 2)."""
    u = np.linspace(0.001, 0.999, 997)
    assert np.allclose(symmetric_beta_quantile(0.5, u), np.sin(np.pi * u / 2) ** 2, atol=1e-6)


def test_partners_come_from_the_row_s_own_pool():
    """Partners are other rows of the same pool; all of them occur; a lone row keeps itself."""
    pool_of = np.array([0, 1, 0, 1, 0, 2, -1, -1, 0])
    pools = MixPools(pool_of=pool_of)
    recipe = ViewRecipe(mix=Mix(kind="mixup"))
    rows = np.tile(np.arange(9), 200)
    partners = recipe.partner_rows(rows, np.repeat(np.arange(200), 9), pools)
    assert np.array_equal(pool_of[partners], pool_of[rows])
    assert set(partners[rows == 0]) == {2, 4, 8}
    assert set(partners[rows == 3]) == {1}
    for lone in (5, 6, 7):
        assert set(partners[rows == lone]) == {lone}


def test_partners_are_drawn_evenly():
    """Each other row of a pool is drawn about equally often."""
    pools = MixPools(pool_of=np.zeros(5, np.int64))
    recipe = ViewRecipe(mix=Mix(kind="mixup"))
    partners = recipe.partner_rows(np.full(8000, 2), np.arange(8000), pools)
    counts = np.bincount(partners, minlength=5)
    assert counts[2] == 0
    assert np.abs(counts[[0, 1, 3, 4]] - 2000).max() < 200


def test_growth_does_not_change_old_partners():
    """Rows appended in pools of their own leave the partners of all old rows as they were."""
    rng = np.random.default_rng(1)
    old = rng.integers(-1, 4, 300)
    grown = np.concatenate([old, rng.integers(4, 8, 200)])
    recipe = ViewRecipe(mix=Mix(kind="cutmix"))
    rows, views = np.arange(300), np.arange(300) % 3
    before = recipe.partner_rows(rows, views, MixPools(pool_of=old))
    assert np.array_equal(before, recipe.partner_rows(rows, views, MixPools(pool_of=grown)))


def test_a_row_outside_the_pools_is_refused():
    """A row that the pools do not know raises instead of wrapping around."""
    with pytest.raises(ValueError, match="rows must be in"):
        MixPools(pool_of=np.zeros(3, np.int64)).partners(np.array([3]), np.zeros(1, np.uint32))


def test_unmixed_views_keep_their_row_and_weight():
    """With probability p of mixing, the rest keep weight 1 and themselves as partner."""
    recipe = ViewRecipe(mix=Mix(kind="mixup", probability=0.3))
    rows, views = np.arange(5000), np.zeros(5000, np.int64)
    parameters = recipe.parameters(rows, views)
    partners = recipe.partner_rows(rows, views, MixPools(pool_of=np.zeros(5000, np.int64)))
    assert abs(parameters.mixed.mean() - 0.3) < 0.03
    assert np.all(parameters.mix_weight[~parameters.mixed] == 1)
    assert np.array_equal(partners[~parameters.mixed], rows[~parameters.mixed])
    assert np.all(partners[parameters.mixed] != rows[parameters.mixed])


def test_cutmix_weight_is_the_area_left():
    """The weight is 1 - the area of the box after clipping, so its mean exceeds 1/2."""
    parameters = ViewRecipe(mix=Mix(kind="cutmix")).parameters(
        np.arange(5000), np.zeros(5000, np.int64)
    )
    left, top, right, bottom = parameters.mix_box.T
    assert np.array_equal(parameters.mix_weight, 1 - (right - left) * (bottom - top))
    assert 0.6 < parameters.mix_weight.mean() < 0.8
