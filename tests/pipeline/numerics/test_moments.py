"""Streaming mean and covariance are those of numpy, whatever the batches."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.numerics.moments import StreamingMoments


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.integers(0, 2**16), st.booleans())
def test_any_cut_into_batches_gives_numpys_moments(sizes, seed, covariance):
    """Empty batches and batches of one are fine."""
    values = np.random.default_rng(seed).normal(3, 2, (sum(sizes) + 1, 4)).astype(np.float32)
    found = StreamingMoments(4, covariance=covariance)
    for batch in np.split(values, np.cumsum(sizes)):
        found.update(torch.from_numpy(batch))
    exact = values.astype(np.float64)
    expected = np.cov(exact.T, bias=True) if covariance else exact.var(axis=0)
    assert found.count == len(values)
    np.testing.assert_allclose(found.mean, exact.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(found.covariance, expected, rtol=1e-10, atol=1e-13)


def test_a_mean_far_above_the_spread_costs_no_digits():
    """A sum of squares would have no digit left of this variance."""
    values = 1e8 + np.random.default_rng(0).normal(0, 1e-3, (5000, 2))
    found = StreamingMoments(2, covariance=True)
    for batch in np.array_split(values, 50):
        found.update(torch.from_numpy(batch))
    np.testing.assert_allclose(found.covariance, np.cov(values.T, bias=True), rtol=1e-5, atol=1e-11)
