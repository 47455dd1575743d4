"""The code of a dictionary against a dense reference, and the fit of one."""

from __future__ import annotations

import numpy as np
import torch

from pipeline.numerics.codewords import (
    Dictionary,
    dense_code,
    fit_dictionary,
    reconstruct,
    similarity_logits,
    sparse_code,
)
from pipeline.numerics.uniform_sample import UniformSample

CODEWORDS, CHANNELS, KEPT = 12, 6, 3


def planted(count=4000):
    """(count, 6) sums of two of twelve directions, of a mean square of 1."""
    rng = np.random.default_rng(0)
    directions = np.abs(rng.normal(size=(CODEWORDS, CHANNELS))) ** 3
    pairs = rng.integers(0, CODEWORDS, (count, 2))
    vectors = torch.from_numpy(directions[pairs].sum(axis=1)).float()
    return vectors / vectors.square().mean().sqrt()


def test_the_code_is_that_of_a_dense_reference():
    """Similarities, the largest of them and what they make of a vector are numpy's in float64."""
    rng = np.random.default_rng(1)
    words, bias, x = rng.normal(size=(CODEWORDS, CHANNELS)), -0.3, rng.normal(size=(5, 4, CHANNELS))
    every = 1 / (1 + np.exp(-(np.einsum("bpd,md->bpm", x, words) + bias)))
    order = np.argsort(-every, axis=2)[..., :KEPT]
    dense = np.zeros_like(every)
    np.put_along_axis(dense, order, np.take_along_axis(every, order, 2), 2)
    dictionary = Dictionary(torch.from_numpy(words), torch.tensor(bias, dtype=torch.float64))
    code = sparse_code(similarity_logits(torch.from_numpy(x), dictionary), KEPT)
    assert (code.ids.numpy() == order).all()
    np.testing.assert_allclose(dense_code(code, CODEWORDS), dense, rtol=1e-12)
    found = reconstruct(torch.from_numpy(x), dictionary, KEPT)
    np.testing.assert_allclose(found, dense @ words, rtol=1e-10)


def test_codewords_are_told_apart_where_their_sigmoids_are_equal():
    """Similarities near 1 are ordered by what is before the sigmoid."""
    code = sparse_code(torch.tensor([[40.0, 60.0, 50.0]]), 2)
    assert code.ids.tolist() == [[1, 2]]
    assert code.values.tolist() == [[1, 1]]


def test_the_fit_lowers_the_error_and_is_the_same_again():
    """It loses under 0.7 of what its start loses; a seed gives one dictionary, bit for bit."""
    vectors = planted()

    def fit(steps, seed=0):
        return fit_dictionary(vectors, CODEWORDS, KEPT, steps=steps, seed=seed)

    def error(dictionary):
        return (reconstruct(vectors, dictionary, KEPT) - vectors).square().mean().item()

    found = fit(80)
    assert error(found) < 0.7 * error(fit(0))
    ids = sparse_code(similarity_logits(vectors, found), KEPT).ids
    assert len(ids.unique()) > CODEWORDS // 2
    assert all(torch.equal(one, other) for one, other in zip(found, fit(80), strict=True))
    assert not torch.equal(found.codewords, fit(80, seed=1).codewords)


def test_fewer_vectors_than_codewords_give_a_dictionary():
    """A class of a few images is no error."""
    found = fit_dictionary(planted(3), CODEWORDS, KEPT, steps=3, seed=0)
    assert found.codewords.isfinite().all()
    blank = fit_dictionary(torch.zeros(3, CHANNELS), CODEWORDS, KEPT, steps=3, seed=0)
    assert blank.codewords.isfinite().all()


def test_a_sample_is_uniform_however_the_stream_is_cut():
    """Vectors of the end are drawn as often as those of the start, and batches do not matter."""
    stream = torch.arange(4000.0).unsqueeze(1)

    def sample(batch):
        found = UniformSample(400, 1, seed=3)
        for part in stream.split(batch):
            found.update(part)
        return found.vectors

    found = sample(4000)
    assert torch.equal(found, sample(7))
    assert len(found.unique()) == 400
    # Four deviations of the mean of 400 numbers within 0 and 4000.
    assert abs(found.mean().item() - 2000) < 4 * 4000 / 12**0.5 / 20
    assert abs(found[:200].mean().item() - 2000) < 4 * 4000 / 12**0.5 / 200**0.5
    short = UniformSample(400, 1, seed=3)
    short.update(stream[:5])
    assert sorted(short.vectors[:, 0].tolist()) == [0, 1, 2, 3, 4]
