"""Balanced KD: weights by class, exact re-weighting of stored labels, and when it begins."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.config import Balanced
from pipeline.numerics import SoftLabelBatch, SupportTable, sparse_kl
from pipeline.numerics.reweighted import reweighted_kl
from pipeline.objectives import build_objective
from pipeline.objectives.balanced import class_balanced_weights
from pipeline.objectives.base import LabelContext, StudentOutput, TargetBatch

B, C, T = 5, 9, 2.0
SUPPORTS = (torch.arange(4), torch.tensor([2, 4, 5, 6, 7, 8]))
TABLE = SupportTable.from_supports(SUPPORTS, C)
TEACHER = torch.tensor([[0, 1, 1, 0, -1], [1, -1, -1, -1, -1]])
COUNTS = torch.tensor([5000, 800, 90, 8, 1, 700, 60, 5, 0])
CONTEXT = LabelContext(
    num_classes=C,
    vertical_of=torch.zeros(C, dtype=torch.int64),
    supports=SUPPORTS,
    class_counts=COUNTS,
    total_steps=4,
)


def teachers(k: int) -> tuple[SoftLabelBatch, Tensor]:
    """Top-k labels of random teachers, and their dense (2, B, C) distributions, tail spread."""
    generator = torch.Generator().manual_seed(2)
    dense = torch.zeros(2, B, C, dtype=torch.float64)
    ids, log_probs = torch.full((2, B, k), -1), torch.full((2, B, k), -torch.inf).double()
    log_tail = torch.full((2, B), -torch.inf, dtype=torch.float64)
    for slot in range(2):
        for row in range(B):
            if TEACHER[slot, row] < 0:
                continue
            support = SUPPORTS[TEACHER[slot, row]]
            scores = torch.randn(len(support), generator=generator, dtype=torch.float64)
            top = scores.softmax(0).topk(min(k, len(support)))
            n, left = len(top.indices), 1 - top.values.sum()
            ids[slot, row, :n], log_probs[slot, row, :n] = support[top.indices], top.values.log()
            if n < len(support):
                log_tail[slot, row] = left.log()
                dense[slot, row, support] = left / (len(support) - n)
            dense[slot, row, support[top.indices]] = top.values
    soft = SoftLabelBatch(ids=ids, log_probs=log_probs, log_tail=log_tail, teacher=TEACHER)
    return soft, dense


def student() -> Tensor:
    """Float64 logits that want a gradient."""
    generator = torch.Generator().manual_seed(3)
    return torch.randn(B, C, generator=generator, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("k", [1, 3, 6])
def test_reweighting_equals_the_dense_reference(k: int) -> None:
    """Value and gradient are those of the dense distribution, each tail class by its weight."""
    soft, dense = teachers(k)
    logits, weights = student(), class_balanced_weights(COUNTS, 0.9999)
    rows = []
    for row in range(B):
        losses = []
        for slot in range(2):
            if TEACHER[slot, row] >= 0:
                target = weights * dense[slot, row]
                log_probs = logits[row].div(T).log_softmax(0)
                losses.append(functional.kl_div(log_probs, target / target.sum(), reduction="sum"))
        rows.append(torch.stack(losses).mean() if losses else logits.new_zeros(()))
    expected = torch.stack(rows)
    found = reweighted_kl(logits, soft, TABLE, weights.log(), temperature=T)
    torch.testing.assert_close(found, expected)
    wanted, given = (
        torch.autograd.grad(loss.sum(), logits, retain_graph=True)[0] for loss in (expected, found)
    )
    torch.testing.assert_close(given, wanted)


@pytest.mark.parametrize("k", [2, 6])
def test_equal_weights_are_plain_distillation(k: int) -> None:
    """With one weight for all classes nothing is re-weighted."""
    soft, _ = teachers(k)
    even = torch.full((C,), 3.0).log()
    found = reweighted_kl(student(), soft, TABLE, even, temperature=T)
    torch.testing.assert_close(found, sparse_kl(student(), soft, TABLE, temperature=T))


def test_weights_are_inverse_effective_numbers() -> None:
    """w_c is (1 - b) / (1 - b^n), of mean 1; rare classes weigh most, b = 0 weighs none."""
    weights = class_balanced_weights(COUNTS, 0.99)
    ratio = (1 - 0.99**90) / (1 - 0.99**8)
    assert (weights[3] / weights[2]).item() == pytest.approx(ratio)
    assert weights.mean().item() == pytest.approx(1)
    assert weights[8] == weights[4] == weights.max()
    assert class_balanced_weights(COUNTS, 0.0).tolist() == [1.0] * C


def test_deferred_weights_begin_at_their_share_and_are_resumed() -> None:
    """Weights come in after that share of the steps, counted in training and saved."""
    soft, _ = teachers(6)
    targets = TargetBatch(labels=torch.tensor([0, 4, 5, 1, 8]), soft=soft)
    output = StudentOutput(logits=student(), features=torch.zeros(B, 2))

    def loss(config: Balanced, steps: int) -> list[float]:
        objective = build_objective(config, CONTEXT)
        resumed = build_objective(config, CONTEXT)
        values = []
        for _ in range(steps):
            values.append(objective(output, targets)["kd_loss"].item())
            resumed.load_state_dict(objective.state_dict())
            objective, resumed = resumed, objective
        return values

    plain = loss(Balanced(name="balanced", beta=0.0), 1)[0]
    balanced = loss(Balanced(name="balanced"), 1)[0]
    later = loss(Balanced(name="balanced", balanced_from=0.5), 4)
    assert later == pytest.approx([plain, plain, balanced, balanced])
    assert plain != pytest.approx(balanced)
    waiting = build_objective(Balanced(name="balanced", balanced_from=0.5), CONTEXT).eval()
    for _ in range(4):
        assert waiting(output, targets)["kd_loss"].item() == pytest.approx(plain)
