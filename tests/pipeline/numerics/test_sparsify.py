"""The top-k with its exact tail."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.numerics import sparsify
from pipeline.numerics.sparsify import top_ids


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


@pytest.mark.parametrize("classes", [600, 601, 1 << 15, (1 << 15) + 5])
@pytest.mark.parametrize("levels", [3, 1_000, None])
def test_many_classes_keep_the_order_of_ties(classes: int, levels: int | None) -> None:
    """Where candidates are looked for first, ids are those of a stable sort of the whole row."""
    generator = torch.Generator().manual_seed(classes)
    logits = torch.randn(6, classes, generator=generator)
    if levels is not None:
        logits = (logits * levels / 4).round()
    logits[2] = 1.5
    ordered = logits.sort(dim=1, descending=True, stable=True)
    for k in (1, 16):
        ids, values = top_ids(logits, k)
        assert torch.equal(ids, ordered.indices[:, :k])
        assert torch.equal(values, ordered.values[:, : k + 1])


def test_tails_at_many_classes_are_exact() -> None:
    """The sum of 100,000 exponentials in float32 is within 1e-5 of that in float64."""
    logits = 4 * torch.randn(3, 100_000, generator=torch.Generator().manual_seed(3))
    found = sparsify(logits, 16, (1.0, 4.0)).log_tail_ratio.double()
    ordered = logits.double().sort(dim=1, descending=True).values
    for column, temperature in enumerate((1.0, 4.0)):
        scaled = ordered / temperature
        expected = scaled[:, 0] - scaled[:, 16:].logsumexp(dim=1)
        torch.testing.assert_close(found[:, column], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("classes", [50, 5_000])
def test_rows_do_not_depend_on_their_batch(classes: int) -> None:
    """A row gives the same bits alone and among others."""
    logits = torch.randn(9, classes)
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
