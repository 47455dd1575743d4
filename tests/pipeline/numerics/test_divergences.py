"""The sparse losses against dense float64 references."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.numerics import (
    SoftLabelBatch,
    SupportTable,
    factorised_kl,
    sparse_bce,
    sparse_kl,
    sparsify,
    support_log_mass,
)

C = 23
SUPPORTS = (torch.arange(3, 12), torch.tensor([0, 2, 5, 13, 14, 20, 22]), torch.tensor([7]))
TABLE = SupportTable.from_supports(SUPPORTS, C)


def soft_labels(teacher: Tensor, k: int, dtype: torch.dtype = torch.float64) -> SoftLabelBatch:
    """Random soft labels for (T, B) teachers, and -1 places where a support is small."""
    generator = torch.Generator().manual_seed(int(teacher.sum()) + k)
    t, b = teacher.shape
    ids = torch.full((t, b, k), -1)
    log_probs = torch.full((t, b, k), -torch.inf, dtype=dtype)
    log_tail = torch.full((t, b), -torch.inf, dtype=dtype)
    for slot in range(t):
        for row in range(b):
            if teacher[slot, row] < 0:
                continue
            support = SUPPORTS[int(teacher[slot, row])]
            logits = 3 * torch.randn(len(support), generator=generator, dtype=torch.float64)
            values, order = logits.log_softmax(0).sort(descending=True)
            kept = min(k, len(support))
            ids[slot, row, :kept] = support[order[:kept]]
            log_probs[slot, row, :kept] = values[:kept].to(dtype)
            if kept < len(support):
                log_tail[slot, row] = values[kept:].logsumexp(0).to(dtype)
    return SoftLabelBatch(ids=ids, log_probs=log_probs, log_tail=log_tail, teacher=teacher)


def dense_kl(logits: Tensor, soft: SoftLabelBatch, tail: str, over: str, temp: float) -> Tensor:
    """KL by dense vectors, one row and one teacher at a time."""
    rows = []
    for row in range(len(logits)):
        values = []
        for slot in range(len(soft.teacher)):
            teacher = int(soft.teacher[slot, row])
            if teacher < 0:
                continue
            support = SUPPORTS[teacher]
            stored = soft.ids[slot, row] >= 0
            ids = soft.ids[slot, row][stored]
            rest = torch.tensor([c for c in support.tolist() if c not in ids.tolist()]).long()
            target = torch.zeros(C, dtype=torch.float64)
            target[ids] = soft.log_probs[slot, row][stored].double().exp()
            tail_mass = float(soft.log_tail[slot, row].double().exp())
            scores = logits[row] / temp
            if over == "support":
                outside = torch.ones(C, dtype=torch.bool)
                outside[support] = False
                scores = scores.masked_fill(outside, -torch.inf)
            student = scores.softmax(0)
            if tail == "drop":
                target = target / target.sum()
            elif tail == "uniform" and len(rest):
                target[rest] = tail_mass / len(rest)
            used = target > 0
            value = (target[used] * (target[used] / student[used]).log()).sum()
            if tail == "bucket" and len(rest):
                value = value + tail_mass * (math.log(tail_mass) - student[rest].sum().log())
            values.append(value)
        rows.append(torch.stack(values).mean() if values else logits[row].sum() * 0)
    return torch.stack(rows)


TEACHERS = {
    "own": torch.tensor([[0, 1, 2, 0, 1]]),
    "all": torch.tensor([[0, 1, -1, 0, 2], [1, -1, -1, 1, 0]]),
}


@pytest.mark.parametrize("routing", TEACHERS)
@pytest.mark.parametrize("k", [1, 4, C])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("over", ["all", "support"])
@pytest.mark.parametrize("tail", ["uniform", "bucket", "drop"])
def test_sparse_kl_equals_the_dense_divergence(routing, k, temperature, over, tail) -> None:
    """Values and gradients equal those of dense float64 vectors, for every treatment."""
    soft = soft_labels(TEACHERS[routing], k)
    logits = (4 * torch.randn(5, C, generator=torch.Generator().manual_seed(1))).double()
    dense_input, sparse_input = (logits.clone().requires_grad_() for _ in range(2))
    expected = dense_kl(dense_input, soft, tail, over, temperature)
    found = sparse_kl(sparse_input, soft, TABLE, temperature=temperature, tail=tail, over=over)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    weights = torch.arange(1.0, 6.0, dtype=torch.float64)
    (expected @ weights).backward()
    (found @ weights).backward()
    torch.testing.assert_close(sparse_input.grad, dense_input.grad, rtol=0, atol=1e-12)


def test_sparse_kl_in_float32_with_all_classes_stored() -> None:
    """With k = C, float32 values and gradients are within 1e-6 of dense float64."""
    generator = torch.Generator().manual_seed(0)
    classes = 300
    teacher = 4 * torch.randn(16, classes, generator=generator)
    found = sparsify(teacher, classes, (1.0,))
    log_probs = found.logits.double().log_softmax(1)
    soft = SoftLabelBatch(
        ids=found.ids[None],
        log_probs=log_probs[None].float(),
        log_tail=torch.full((1, 16), -torch.inf),
        teacher=torch.zeros(1, 16, dtype=torch.int64),
    )
    table = SupportTable.from_supports((torch.arange(classes),), classes)
    student = torch.randn(16, classes, generator=generator)
    sparse_input = student.clone().requires_grad_()
    dense_input = student.double().requires_grad_()
    value = sparse_kl(sparse_input, soft, table)
    expected = functional.kl_div(
        dense_input.log_softmax(1),
        teacher.double().log_softmax(1),
        log_target=True,
        reduction="none",
    ).sum(1)
    torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-6)
    value.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(sparse_input.grad.double(), dense_input.grad, rtol=0, atol=1e-6)


@pytest.mark.parametrize("over", ["all", "support"])
@pytest.mark.parametrize("tail", ["uniform", "bucket", "drop"])
def test_gradients_by_finite_differences(over, tail) -> None:
    """Gradcheck holds for the KL, the mass of the support and the binary cross-entropy."""
    soft = soft_labels(TEACHERS["all"], 3)
    logits = torch.randn(5, C, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x: sparse_kl(x, soft, TABLE, temperature=2.0, tail=tail, over=over), logits
    )
    assert torch.autograd.gradcheck(lambda x: support_log_mass(x, soft.teacher, TABLE), logits)
    assert torch.autograd.gradcheck(lambda x: sparse_bce(x, soft), logits)


def test_the_chain_rule_joins_support_and_vertical() -> None:
    """KL over all classes = KL inside the support - log mass of the support."""
    soft = soft_labels(TEACHERS["own"], 4)
    logits = torch.randn(5, C, dtype=torch.float64)
    whole = sparse_kl(logits, soft, TABLE)
    inside = sparse_kl(logits, soft, TABLE, over="support")
    torch.testing.assert_close(whole, inside - support_log_mass(logits, soft.teacher, TABLE))


def test_tiny_tails_and_huge_logits_stay_finite() -> None:
    """Extreme student logits give finite values and gradients for every treatment."""
    soft = soft_labels(TEACHERS["all"], 4, torch.float32)
    soft.log_tail[soft.log_tail > -torch.inf] = -80.0
    logits = (torch.randn(5, C) * 200).requires_grad_()
    for tail in ("uniform", "bucket", "drop"):
        for over in ("all", "support"):
            value = sparse_kl(logits, soft, TABLE, tail=tail, over=over)
            (gradient,) = torch.autograd.grad(value.sum(), logits)
            assert value.isfinite().all()
            assert gradient.isfinite().all()
            assert (value > -1e-3).all()


def test_half_precision_logits_are_raised() -> None:
    """bfloat16 logits, as under autocast, give the value of the same logits in float32."""
    soft = soft_labels(TEACHERS["own"], 4, torch.float32)
    logits = torch.randn(5, C).bfloat16()
    value = sparse_kl(logits, soft, TABLE)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, sparse_kl(logits.float(), soft, TABLE))
    assert sparse_bce(logits, soft).dtype == torch.float32


def test_sparse_bce_equals_the_dense_sum() -> None:
    """The sparse form is the paper's sum over all classes, zeros outside the stored ones."""
    soft = soft_labels(TEACHERS["all"], 4)
    logits = 3 * torch.randn(5, C, dtype=torch.float64)
    target = torch.zeros(5, C, dtype=torch.float64)
    for row in range(5):
        present = [slot for slot in range(2) if soft.teacher[slot, row] >= 0]
        for slot in present:
            stored = soft.ids[slot, row] >= 0
            probs = soft.log_probs[slot, row][stored].exp()
            target[row].index_add_(0, soft.ids[slot, row][stored], probs / len(present))
    expected = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    torch.testing.assert_close(sparse_bce(logits, soft), expected.sum(1), rtol=0, atol=1e-11)


def test_supports_are_checked() -> None:
    """Supports that are empty, unsorted or out of range are refused."""
    for wrong in ([], [3, 2], [1, 1], [-1, 2], [0, C]):
        with pytest.raises(ValueError, match="support 0 must"):
            SupportTable.from_supports((torch.tensor(wrong, dtype=torch.int64),), C)


@pytest.mark.parametrize("routing", TEACHERS)
@pytest.mark.parametrize("k", [1, 4, C])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("tail", ["uniform", "bucket", "drop"])
def test_factorised_kl_equals_its_two_parts(routing, k, temperature, tail) -> None:
    """One pass gives the values and gradients of the log mass and of the divergence."""
    soft = soft_labels(TEACHERS[routing], k)
    logits = (4 * torch.randn(5, C, generator=torch.Generator().manual_seed(2))).double()
    one, two = (logits.clone().requires_grad_() for _ in range(2))
    mass, divergence = factorised_kl(one, soft, TABLE, temperature=temperature, tail=tail)
    expected_mass = support_log_mass(two, soft.teacher, TABLE)
    expected = sparse_kl(two, soft, TABLE, temperature=temperature, tail=tail, over="support")
    torch.testing.assert_close(mass, expected_mass, rtol=0, atol=1e-12)
    torch.testing.assert_close(divergence, expected, rtol=0, atol=1e-9)
    weights = torch.arange(1.0, 6.0, dtype=torch.float64)
    (mass @ weights + divergence @ weights.flip(0)).backward()
    (expected_mass @ weights + expected @ weights.flip(0)).backward()
    torch.testing.assert_close(one.grad, two.grad, rtol=0, atol=1e-9)


def test_factorised_kl_gradients_by_finite_differences() -> None:
    """Gradcheck holds for both parts of the factorised loss."""
    soft = soft_labels(TEACHERS["all"], 3)
    logits = torch.randn(5, C, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x: factorised_kl(x, soft, TABLE, temperature=2.0), logits
    )


def test_factorised_kl_in_float32_is_close_to_float64() -> None:
    """At a thousand classes, single precision loses no more than 1e-5 nats."""
    generator = torch.Generator().manual_seed(0)
    classes = 1000
    found = sparsify(4 * torch.randn(64, classes, generator=generator), 16, (1.0,))
    tail = found.logits[:, :1] - found.log_tail_ratio
    mass = torch.cat([found.logits, tail], dim=1).log_softmax(1)
    soft = SoftLabelBatch(
        ids=found.ids[None],
        log_probs=mass[None, :, :-1],
        log_tail=mass[None, :, -1],
        teacher=torch.zeros(1, 64, dtype=torch.int64),
    )
    table = SupportTable.from_supports((torch.arange(classes),), classes)
    student = 5 * torch.randn(64, classes, generator=generator)
    single = factorised_kl(student, soft, table, temperature=1.0)
    double = factorised_kl(student.double(), soft, table, temperature=1.0)
    for low, high in zip(single, double, strict=True):
        torch.testing.assert_close(low.double(), high, rtol=1e-6, atol=1e-5)
