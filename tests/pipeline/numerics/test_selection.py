"""The nucleus and the draws, against references in plain float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.numerics import count_draws, draw_counts, nucleus, sparsify
from storage_schemas.label_draws import draw_uniforms


def reference_size(row, k, top_p, temperature):
    """The fewest ranks whose mass reaches top_p, by adding up one by one."""
    p = (row.double() / temperature).softmax(0).sort(descending=True).values.tolist()
    size, mass = 1, p[0]
    while mass < top_p and size < min(k, len(p)):
        mass += p[size]
        size += 1
    return size


@pytest.mark.parametrize("k", [1, 6, 40])
@pytest.mark.parametrize("top_p", [0.05, 0.6, 0.95, 1.0])
@pytest.mark.parametrize("temperatures", [(1.0, 3.0), (2.0, 0.5)])
def test_nucleus_is_the_smallest_prefix_with_its_exact_tail(k, top_p, temperatures):
    """Sizes, ids and tails equal those of float64 softmax at the first temperature."""
    logits = torch.randn(60, 40, generator=torch.Generator().manual_seed(0)) * 3
    found = nucleus(logits, k, top_p, temperatures)
    order = logits.sort(dim=1, descending=True, stable=True).indices
    for row in range(60):
        size = reference_size(logits[row], k, top_p, temperatures[0])
        kept = order[row, :size]
        assert found.ids[row].tolist() == kept.tolist() + [-1] * (found.ids.shape[1] - size)
        assert torch.equal(found.logits[row, :size], logits[row, kept])
        for column, t in enumerate(temperatures):
            rest = logits[row].double().index_fill(0, kept, -torch.inf) / t
            expected = logits[row, kept[0]].double() / t - rest.logsumexp(0)
            assert found.log_tail_ratio[row, column].item() == pytest.approx(
                expected.item(), rel=1e-5, abs=1e-5
            )


def test_a_nucleus_of_all_mass_is_the_top_k():
    """With top_p = 1 nothing is left out but what k leaves out; no tail where all is kept."""
    logits = torch.randn(9, 12, generator=torch.Generator().manual_seed(1))
    for k in (5, 12, 20):
        wanted = sparsify(logits, k, (1.0, 2.0))
        found = nucleus(logits, k, 1.0, (1.0, 2.0))
        assert torch.equal(found.ids, wanted.ids)
        torch.testing.assert_close(found.log_tail_ratio, wanted.log_tail_ratio)


def test_equal_logits_enter_the_nucleus_by_lower_id():
    """Among equal classes the lower ids are kept."""
    found = nucleus(torch.zeros(1, 10), 8, 0.35, (1.0,))
    assert found.ids.tolist() == [[0, 1, 2, 3, -1, -1, -1, -1]]
    assert found.log_tail_ratio.item() == pytest.approx(-np.log(6), rel=1e-6)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.integers(0, 5), min_size=7, max_size=7), min_size=1, max_size=4))
def test_counts_of_any_draws(rows):
    """Different ids by falling count, equal counts by rising id, and every draw is counted."""
    ids, counts = count_draws(torch.tensor(rows))
    for row, found, times in zip(rows, ids.tolist(), counts.tolist(), strict=True):
        wanted = sorted(set(row), key=lambda c: (-row.count(c), c))
        assert found == wanted + [-1] * (7 - len(wanted))
        assert times == [row.count(c) for c in wanted] + [0] * (7 - len(wanted))


def test_draws_are_the_inverse_of_the_cumulative_distribution():
    """Each draw is the class in whose stretch of [0, 1] its uniform lies; no mass, no draw."""
    logits = torch.tensor([0.2, 0.0, 0.5, 0.0, 0.3]).log().clamp(min=-800)[None]
    u = torch.tensor([[1e-12, 0.199, 0.2001, 0.69, 0.7001, 1 - 2.0**-53]], dtype=torch.float64)
    ids, counts = draw_counts(logits, u, 1.0)
    assert ids.tolist() == [[0, 2, 4, -1, -1, -1]]
    assert counts.tolist() == [[2, 2, 2, 0, 0, 0]]


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_mean_of_many_labels_is_the_distribution(temperature):
    """Over 100,000 labels of 4 draws every class has its probability, to 5 standard errors."""
    logits = torch.tensor([[4.0, 2.0, 1.0, 0.5, 0.0, -1.0, -3.0, -6.0]])
    rows = 100_000
    u = torch.from_numpy(draw_uniforms(3, np.arange(rows), 1, 4))
    ids, counts = draw_counts(logits.expand(rows, -1), u, temperature)
    mass = torch.zeros(9).index_add_(0, ids.flatten().clamp(min=-1) % 9, counts.float().flatten())
    p = (logits[0].double() / temperature).softmax(0)
    error = (p * (1 - p) / (4 * rows)).sqrt()
    assert ((mass[:8].double() / (4 * rows) - p).abs() < 5 * error).all()
    assert mass[8] == 0


def test_many_classes_are_drawn_a_few_rows_at_a_time(monkeypatch):
    """The result does not depend on how many rows fit into memory at once."""
    from pipeline.numerics import selection

    logits = torch.randn(11, 300, generator=torch.Generator().manual_seed(2)) * 4
    u = torch.rand(11, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    whole = (*draw_counts(logits, u, 1.0), nucleus(logits, 16, 0.9, (1.0,)).ids)
    monkeypatch.setattr(selection, "_ELEMENTS_AT_ONCE", 700)
    parts = (*draw_counts(logits, u, 1.0), nucleus(logits, 16, 0.9, (1.0,)).ids)
    assert all(torch.equal(one, other) for one, other in zip(whole, parts, strict=True))


def test_arguments_are_checked():
    """A mass outside (0, 1] and logits of another rank are refused."""
    for top_p in (0.0, 1.1):
        with pytest.raises(ValueError, match="top_p must be in"):
            nucleus(torch.zeros(1, 3), 1, top_p, (1.0,))
    with pytest.raises(ValueError, match="logits must be"):
        draw_counts(torch.zeros(3), torch.zeros(1, 2), 1.0)
