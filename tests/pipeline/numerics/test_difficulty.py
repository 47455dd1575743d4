"""Difficulty from sparse labels against dense distributions in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.numerics import SoftLabelBatch, SupportTable
from pipeline.numerics.difficulty import sparse_entropy, true_class_probability

SUPPORTS = SupportTable.from_supports([torch.arange(4), torch.tensor([2, 4, 5, 6, 7])], 8)
# Two teachers for row 0, one for rows 1 and 2, none for row 3.
TEACHER = torch.tensor([[0, 1, 0, -1], [1, -1, -1, -1]])
IDS = torch.tensor([[[0, 2], [7, 4], [1, 3], [-1, -1]], [[2, 6], [-1, -1], [-1, -1], [-1, -1]]])
PROBS = torch.tensor(
    [[[0.6, 0.3], [0.5, 0.2], [0.9, 0.1], [0, 0]], [[0.7, 0.1], [0, 0], [0, 0], [0, 0]]],
    dtype=torch.float64,
)
TAIL = torch.tensor([[0.1, 0.3, 0.0, 0.0], [0.2, 0, 0, 0]], dtype=torch.float64)
SOFT = SoftLabelBatch(ids=IDS, log_probs=PROBS.log(), log_tail=TAIL.log(), teacher=TEACHER)


def dense(row: int) -> list[Tensor]:
    """The distributions of a row's teachers over all eight classes."""
    found = []
    for slot in range(2):
        if TEACHER[slot, row] < 0:
            continue
        support = SUPPORTS.ids[TEACHER[slot, row]]
        support = support[support < 8]
        stored = IDS[slot, row]
        probs = torch.zeros(8, dtype=torch.float64)
        probs[support] = TAIL[slot, row] / (len(support) - 2)
        probs[stored] = PROBS[slot, row]
        found.append(probs)
    return found


def test_entropy_is_that_of_the_dense_distribution() -> None:
    """The tail counts as spread evenly; a row without a teacher has none."""
    expected = [
        torch.stack([torch.special.entr(p).sum() for p in dense(row)]).mean() for row in range(3)
    ]
    torch.testing.assert_close(sparse_entropy(SOFT, SUPPORTS)[:3], torch.stack(expected))
    assert sparse_entropy(SOFT, SUPPORTS)[3] == 0


def test_probability_of_the_hard_label() -> None:
    """Stored, in the tail, outside the support of a teacher, or unlabelled."""
    for label in range(8):
        found = true_class_probability(SOFT, torch.full((4,), label), SUPPORTS)
        expected = [torch.stack([p[label] for p in dense(row)]).mean() for row in range(3)]
        torch.testing.assert_close(found[:3], torch.stack(expected))
        assert found[3] == 0
    assert not true_class_probability(SOFT, torch.full((4,), -1), SUPPORTS).any()
