"""The top-k with its exact tail."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.numerics import sparsify


@pytest.mark.parametrize("k", [1, 5, 99])
def test_tail_is_exact(k: int) -> None:
    """The ratio equals the one of float64 softmax at every temperature, also for tiny tails."""
    logits = torch.randn(20, 100, generator=torch.Generator().manual_seed(0)) * 12
    temperatures = (1.0, 3.0)
    found = sparsify(logits, k, temperatures)
    for column, temperature in enumerate(temperatures):
        ordered = (logits.double() / temperature).sort(dim=1, descending=True).values
        expected = ordered[:, 0] - ordered[:, k:].logsumexp(1)
        torch.testing.assert_close(
            found.log_tail_ratio[:, column].double(), expected, rtol=1e-6, atol=1e-5
        )
    torch.testing.assert_close(found.logits, logits.topk(k).values, rtol=0, atol=0)
    assert found.ids.dtype == torch.int64


def test_no_tail_where_all_is_kept_or_under_sigmoid() -> None:
    """With k >= C_t, and under sigmoid, there is no mass outside the kept classes."""
    logits = torch.randn(3, 6)
    whole = sparsify(logits, 10, (1.0, 2.0))
    assert whole.ids.shape == (3, 6)
    assert torch.isposinf(whole.log_tail_ratio).all()
    assert torch.isposinf(sparsify(logits, 2, (1.0,), "sigmoid").log_tail_ratio).all()


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(-2, 2), min_size=7, max_size=7), min_size=1, max_size=4),
    st.integers(1, 7),
)
def test_equal_logits_go_to_the_lower_id(rows: list[list[int]], k: int) -> None:
    """Ids are those of a stable descending sort, whatever ties lie at the cut or above it."""
    found = sparsify(torch.tensor(rows, dtype=torch.float32), k, (1.0,))
    for row, ids in zip(rows, found.ids.tolist(), strict=True):
        assert ids == sorted(range(7), key=lambda c: (-row[c], c))[:k]


def test_rows_do_not_depend_on_their_batch() -> None:
    """A row gives the same bits alone and among others."""
    logits = torch.randn(9, 50)
    whole = sparsify(logits, 8, (1.0, 2.0))
    alone = sparsify(logits[4:5], 8, (1.0, 2.0))
    assert torch.equal(whole.log_tail_ratio[4:5], alone.log_tail_ratio)
    assert torch.equal(whole.ids[4:5], alone.ids)


def test_arguments_are_checked() -> None:
    """A k below 1, temperatures not positive and logits of another rank are refused."""
    with pytest.raises(ValueError, match="k must be at least 1"):
        sparsify(torch.zeros(1, 3), 0, (1.0,))
    with pytest.raises(ValueError, match="temperatures must be positive"):
        sparsify(torch.zeros(1, 3), 1, (0.0,))
    with pytest.raises(ValueError, match="logits must be"):
        sparsify(torch.zeros(3), 1, (1.0,))
