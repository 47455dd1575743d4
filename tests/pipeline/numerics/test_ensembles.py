"""One label out of those of several teachers, against dense distributions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline.numerics import (
    SoftLabelBatch,
    SupportTable,
    mean_teacher,
    one_teacher,
    only_teachers,
    sparse_kl,
)

B, C, K, T = 7, 20, 4, 3
SUPPORTS = (torch.arange(3, 15), torch.arange(3, 15), torch.arange(3, 15), torch.arange(15, 20))
TABLE = SupportTable.from_supports(SUPPORTS, C)


def labels(k: int = K) -> tuple[SoftLabelBatch, Tensor]:
    """Labels of rows with three teachers, two, one and none, and (T, B, C) what each row says."""
    generator = torch.Generator().manual_seed(0)
    teacher = torch.tensor(
        [[0, 1, 0, 2, 3, -1, 0], [1, 2, 2, 1, -1, -1, -1], [2, 0, -1, 0, -1, -1, 1]]
    )
    ids = torch.full((T, B, k), -1)
    log_probs = torch.full((T, B, k), -torch.inf, dtype=torch.float64)
    log_tail = torch.full((T, B), -torch.inf, dtype=torch.float64)
    dense = torch.zeros(T, B, C, dtype=torch.float64)
    for slot in range(T):
        for row in range(B):
            if teacher[slot, row] < 0:
                continue
            support = SUPPORTS[teacher[slot, row]]
            logits = 2 * torch.randn(len(support), generator=generator, dtype=torch.float64)
            probs, order = logits.softmax(0).sort(descending=True)
            kept = min(k, len(support))
            ids[slot, row, :kept] = support[order[:kept]]
            log_probs[slot, row, :kept] = probs[:kept].log()
            dense[slot, row, support[order[:kept]]] = probs[:kept]
            if kept < len(support):
                log_tail[slot, row] = probs[kept:].sum().log()
                dense[slot, row, support[order[kept:]]] = probs[kept:].mean()
    return SoftLabelBatch(ids=ids, log_probs=log_probs, log_tail=log_tail, teacher=teacher), dense


def spread(label: SoftLabelBatch) -> Tensor:
    """(B, C) what a label of one teacher a row says of every class."""
    dense = torch.zeros(B, C, dtype=torch.float64)
    for row in range(B):
        if label.teacher[0, row] < 0:
            continue
        stored = label.ids[0, row] >= 0
        kept = label.ids[0, row][stored]
        assert len(set(kept.tolist())) == len(kept)
        support = SUPPORTS[label.teacher[0, row]]
        rest = support[~torch.isin(support, kept)]
        if len(rest):
            dense[row, rest] = label.log_tail[0, row].exp() / len(rest)
        dense[row, kept] = label.log_probs[0, row][stored].exp()
    return dense


@pytest.mark.parametrize("k", [1, K, 12])
def test_mean_is_that_of_the_dense_distributions(k: int) -> None:
    """Every class has the mean of what the row's teachers give it, to the last bits of float64."""
    soft, dense = labels(k)
    count = (soft.teacher >= 0).sum(0).clamp(min=1).unsqueeze(1)
    torch.testing.assert_close(
        spread(mean_teacher(soft, TABLE)), dense.sum(0) / count, rtol=1e-13, atol=1e-16
    )


def test_mean_label_is_well_formed() -> None:
    """Probable classes come first, absent ones last; a row without a teacher has no label."""
    soft, _ = labels()
    mean = mean_teacher(soft, TABLE)
    assert mean.ids.shape == (1, B, T * K)
    stored = mean.ids >= 0
    assert torch.equal(stored, stored.sort(dim=2, descending=True, stable=True).values)
    steps = torch.where(stored, mean.log_probs, -1e9).diff(dim=2)
    assert bool((steps <= 0).all())
    assert bool((mean.log_probs[~stored] == -torch.inf).all())
    assert mean.teacher[0, 5] == -1
    assert not stored[0, 5].any()
    assert mean.log_tail[0, 5] == -torch.inf


def test_loss_to_the_mean_is_that_of_dense_tensors() -> None:
    """The sparse KL to the mean, and its gradient, equal those of the dense mean."""
    soft, dense = labels()
    logits = torch.randn(B, C, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    logits.requires_grad_()
    mean = dense.sum(0) / (soft.teacher >= 0).sum(0).clamp(min=1).unsqueeze(1)
    expected = (torch.xlogy(mean, mean) - mean * logits.log_softmax(1)).sum(1)
    found = sparse_kl(logits, mean_teacher(soft, TABLE), TABLE)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    gradients = [torch.autograd.grad(value.sum(), logits)[0] for value in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-11, atol=1e-14)


def test_mean_of_drawn_labels_without_a_tail() -> None:
    """Labels that keep all mass and not all classes average to one without a tail."""
    soft, _ = labels()
    drawn = SoftLabelBatch(
        ids=soft.ids,
        log_probs=soft.log_probs.log_softmax(2).nan_to_num(-torch.inf),
        log_tail=torch.full_like(soft.log_tail, -torch.inf),
        teacher=soft.teacher,
    )
    mean = mean_teacher(drawn, TABLE)
    assert bool((mean.log_tail == -torch.inf).all())
    mass = mean.log_probs.exp().sum(2)[0]
    torch.testing.assert_close(mass, (drawn.teacher >= 0).any(0).double())


def test_a_draw_picks_each_teacher_of_a_row_equally_often() -> None:
    """Over evenly spaced draws every teacher of a row comes as often as the others."""
    soft, _ = labels()
    picked = [one_teacher(soft, (step + 0.5) / 6) for step in range(6)]
    counts = torch.stack([label.teacher[0] for label in picked])
    for row in range(B):
        own = soft.teacher[:, row][soft.teacher[:, row] >= 0].tolist() or [-1]
        found = counts[:, row].tolist()
        assert sorted(found) == sorted(own * (6 // len(own)))


def test_the_label_of_a_draw_is_the_teachers_own() -> None:
    """Classes, probabilities and tail are those of the teacher that was drawn."""
    soft, dense = labels()
    label = one_teacher(soft, 0.99)
    last = T - 1 - (soft.teacher >= 0).flip(0).int().argmax(0)
    expected = dense[last, torch.arange(B)]
    torch.testing.assert_close(spread(label), expected, rtol=1e-13, atol=0)


def test_other_teachers_are_left_out() -> None:
    """Rows keep the labels of the teachers that count; the others read as absent."""
    soft, dense = labels()
    kept = only_teachers(soft, torch.tensor([False, True, False, True]))
    assert set(kept.teacher.unique().tolist()) == {-1, 1, 3}
    alone = one_teacher(kept, 0.5)
    wanted = torch.where(torch.isin(soft.teacher, torch.tensor([1, 3]))[..., None], dense, 0.0)
    torch.testing.assert_close(spread(alone), wanted.sum(0), rtol=1e-13, atol=0)
    assert bool((kept.ids[kept.teacher < 0] == -1).all())
