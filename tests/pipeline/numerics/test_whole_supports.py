"""Losses where every teacher knows all classes, and what all of them promise about gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.numerics import (
    SoftLabelBatch,
    SupportTable,
    factorised_kl,
    sparse_kl,
    support_log_mass,
)
from pipeline.numerics.cross_entropy import sparse_cross_entropy
from pipeline.numerics.lookup import pick_and_normalise, support_statistics

C = 17
WHOLE = SupportTable.from_supports((torch.arange(C), torch.arange(C)), C)
HALVES = SupportTable.from_supports((torch.arange(9), torch.arange(9, C)), C)
TEACHER = torch.tensor([[0, 1, -1, 0, 1, -1], [1, -1, -1, 1, 0, 0]])


def labels(teacher: Tensor, table: SupportTable, k: int, seed: int) -> SoftLabelBatch:
    """Random labels of k classes; fewer in every third row, and none without a teacher."""
    generator = torch.Generator().manual_seed(seed)
    t, b = teacher.shape
    places = torch.rand(t, b, int(table.sizes.min()), generator=generator).argsort(dim=2)
    ids = table.ids[teacher.clamp(min=0)].gather(2, places[..., :k])
    logits = 3 * torch.randn(t, b, k + 1, generator=generator, dtype=torch.float64)
    values = logits.log_softmax(dim=2)
    absent = (teacher < 0).unsqueeze(2).repeat(1, 1, k)
    absent[:, ::3, k // 2 + 1 :] = True
    return SoftLabelBatch(
        ids=ids.masked_fill(absent, -1),
        log_probs=values[..., :k].masked_fill(absent, -torch.inf),
        log_tail=values[..., k].masked_fill(teacher < 0, -torch.inf),
        teacher=teacher,
    )


def dense_targets(soft: SoftLabelBatch, table: SupportTable, tail: str) -> Tensor:
    """(T, B, C) distributions, by loops."""
    t, b, _ = soft.ids.shape
    found = torch.zeros(t, b, C, dtype=torch.float64)
    for slot in range(t):
        for row in range(b):
            if soft.teacher[slot, row] < 0:
                continue
            support = table.ids[soft.teacher[slot, row]]
            stored = soft.ids[slot, row] >= 0
            rest = set(support[support < C].tolist()) - set(soft.ids[slot, row].tolist())
            if tail == "uniform" and rest:
                found[slot, row, list(rest)] = soft.log_tail[slot, row].exp() / len(rest)
            found[slot, row, soft.ids[slot, row][stored]] = soft.log_probs[slot, row][stored].exp()
    return found / found.sum(dim=2, keepdim=True).clamp(min=1e-9) if tail == "drop" else found


@settings(deadline=None, max_examples=25)
@given(
    st.integers(1, 8),
    st.sampled_from([1.0, 0.5, 3.0]),
    st.sampled_from(["uniform", "drop"]),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2**16),
)
def test_every_linear_form_equals_the_dense_divergence(
    k: int, temperature: float, tail: str, whole: bool, weighted: bool, seed: int
) -> None:
    """Values and gradients are those of dense vectors: tails, absent ids and rows, and shares."""
    table = WHOLE if whole else HALVES
    soft = labels(TEACHER, table, k, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    shares = torch.rand(TEACHER.shape, generator=generator, dtype=torch.float64)
    share = (TEACHER >= 0) / (TEACHER >= 0).sum(dim=0).clamp(min=1)
    if weighted:
        share = shares * (TEACHER >= 0)
    logits = (5 * torch.randn(6, C, generator=generator, dtype=torch.float64)).requires_grad_()
    target = dense_targets(soft, table, tail)
    log_student = (logits / temperature).log_softmax(dim=1)
    dense = torch.xlogy(target, target) - target * log_student
    expected = (dense.sum(dim=2) * share).sum(dim=0)
    found = sparse_kl(
        logits,
        soft,
        table,
        temperature=temperature,
        tail=tail,  # type: ignore[arg-type]
        shares=shares if weighted else None,
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)
    weights = torch.arange(1.0, 7.0, dtype=torch.float64)
    (wanted,) = torch.autograd.grad(expected @ weights, logits)
    (gradient,) = torch.autograd.grad(found @ weights, logits)
    torch.testing.assert_close(gradient, wanted, rtol=0, atol=1e-11)


def test_a_whole_support_has_all_the_mass() -> None:
    """The vertical is then no question: its loss is 0, the other that over all classes."""
    soft = labels(TEACHER, WHOLE, 4, 0)
    logits = torch.randn(6, C, dtype=torch.float64, requires_grad=True)
    mass, divergence = factorised_kl(logits, soft, WHOLE, temperature=2.0)
    assert mass.tolist() == support_log_mass(logits, soft.teacher, WHOLE).tolist() == [0.0] * 6
    torch.testing.assert_close(divergence, sparse_kl(logits, soft, WHOLE, temperature=2.0))
    assert not replace(HALVES).whole


def losses() -> dict[str, object]:
    """One function of (B, C) logits for each of the three that keep a buffer for the gradient."""
    soft = labels(TEACHER, HALVES, 3, 1)
    return {
        "cross_entropy": lambda x: sparse_kl(x, soft, WHOLE, temperature=2.0),
        "pick_and_normalise": lambda x: sparse_kl(x, soft, HALVES, tail="bucket"),
        "support_statistics": lambda x: sum(factorised_kl(x, soft, HALVES, temperature=2.0)),
    }


@pytest.mark.parametrize("name", losses())
def test_a_second_backward_pass_is_right(name) -> None:
    """The first may use up what the forward pass kept: the second gives the same gradient."""
    logits = torch.randn(6, C, dtype=torch.float64, requires_grad=True)
    value = losses()[name](logits).sum()
    (first,) = torch.autograd.grad(value, logits, retain_graph=True)
    kept = first.clone()
    (second,) = torch.autograd.grad(3 * value, logits, retain_graph=True)
    torch.testing.assert_close(second, 3 * kept)
    assert torch.equal(first, kept)
    with torch.no_grad():
        logits.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(value, logits)


@pytest.mark.parametrize("name", losses())
def test_no_second_derivatives(name) -> None:
    """They are refused, not wrong."""
    logits = torch.randn(6, C, dtype=torch.float64, requires_grad=True)
    value = losses()[name](logits).square().sum()
    (gradient,) = torch.autograd.grad(value, logits, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("name", losses())
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gets_the_gradient_of_float32(name, dtype) -> None:
    """Half logits are raised inside; the gradient is rounded once, at the end."""
    half = (3 * torch.randn(6, C)).to(dtype).requires_grad_()
    full = half.detach().float().requires_grad_()
    low, high = losses()[name](half), losses()[name](full)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, high)
    low.sum().backward()
    high.sum().backward()
    assert half.grad.dtype == dtype
    assert torch.equal(half.grad, full.grad.to(dtype))


def test_targets_have_no_gradient() -> None:
    """A target that wants one is refused, since it would silently get none."""
    weights = torch.rand(2, 3, requires_grad=True)
    with pytest.raises(ValueError, match="target must not require a gradient"):
        sparse_cross_entropy(torch.randn(2, C), torch.zeros(2, 3).long(), weights)


def test_forward_and_backward_share_one_buffer() -> None:
    """What the forward pass keeps of the size of the logits becomes the gradient in place."""
    ids = torch.randint(0, C, (1, 6, 4))
    inside = torch.ones(1, 6, 4)
    for loss in (
        lambda x: sparse_cross_entropy(x, ids[0], torch.rand(6, 4), temperature=2.0),
        lambda x: pick_and_normalise(x, ids)[1],
        lambda x: support_statistics(x, ids, inside, ids, 2.0)[4],
    ):
        logits = torch.randn(6, C, requires_grad=True)
        value = loss(logits)
        assert value.grad_fn.probs.shape == logits.shape
        kept = value.grad_fn.probs.data_ptr()
        value.sum().backward()
        assert kept == logits.grad.data_ptr()
        assert value.grad_fn.probs is None


def test_pick_and_normalise_divides_by_the_temperature() -> None:
    """Values and normaliser are those of logits / T."""
    logits, ids = torch.randn(3, C), torch.tensor([[[1, 1], [2, 0], [16, 3]]])
    values, norm = pick_and_normalise(logits, ids, 2.0)
    torch.testing.assert_close(values[0], (logits / 2).gather(1, ids[0]))
    torch.testing.assert_close(norm, (logits / 2).logsumexp(dim=1))
