"""Which teacher knows an image: entropies of mean answers, and shares from them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline.numerics import SoftLabelBatch, SupportTable
from pipeline.numerics.expertise import expertise, mean_answer_entropy

SUPPORTS = (torch.arange(4), torch.arange(4, 10))
TABLE = SupportTable.from_supports(SUPPORTS, 10)


def answer(logits: tuple[Tensor, ...], k: int, temperature: float) -> SoftLabelBatch:
    """The top k of each teacher's (B, C_t) logits at a temperature."""
    ids, log_probs, tails = [], [], []
    for support, values in zip(SUPPORTS, logits, strict=True):
        dense = (values / temperature).log_softmax(dim=1)
        top = dense.topk(k, dim=1)
        ids.append(support[top.indices])
        log_probs.append(top.values)
        tails.append((1 - top.values.exp().sum(dim=1)).clamp(min=1e-9).log())
    teacher = torch.arange(2)[:, None].expand(-1, len(logits[0]))
    return SoftLabelBatch(
        ids=torch.stack(ids),
        log_probs=torch.stack(log_probs).float(),
        log_tail=torch.stack(tails).float(),
        teacher=teacher,
    )


def logits(seed: int, images: int = 5) -> tuple[Tensor, ...]:
    """Logits of both teachers on some images."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(3 * torch.randn(images, len(s), generator=generator) for s in SUPPORTS)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_entropy_is_that_of_the_mean_over_views(temperature: float) -> None:
    """With all classes stored it is the dense entropy at temperature 1, decoded at any other."""
    views = [logits(seed) for seed in range(3)]
    found = mean_answer_entropy(
        [answer(view, 4, temperature) for view in views], TABLE, temperature=temperature
    )
    mean = torch.stack([view[0].softmax(dim=1) for view in views]).mean(dim=0)
    torch.testing.assert_close(found[0], torch.special.entr(mean).sum(dim=1), atol=1e-5, rtol=1e-4)
    listed = torch.stack(
        [
            torch.zeros(5, 6).scatter_(1, top.indices, top.values.softmax(dim=1))
            for top in (view[1].topk(4, dim=1) for view in views)
        ]
    ).mean(dim=0)
    entropy = torch.special.entr(listed).sum(dim=1)
    torch.testing.assert_close(found[1], entropy, atol=1e-5, rtol=1e-4)


def test_views_that_disagree_are_less_sure() -> None:
    """Two sure answers that differ have more entropy than either."""
    one = tuple(20.0 * torch.eye(6)[:2, : len(s)] for s in SUPPORTS)
    other = tuple(20.0 * torch.eye(6)[2:4, : len(s)] for s in SUPPORTS)
    alone = mean_answer_entropy([answer(one, 4, 1.0)], TABLE)
    both = mean_answer_entropy([answer(one, 4, 1.0), answer(other, 4, 1.0)], TABLE)
    assert (alone < 1e-3).all()
    torch.testing.assert_close(both, torch.full_like(both, 2.0).log(), atol=1e-3, rtol=0)


def test_absent_teachers_have_no_entropy() -> None:
    """A row that a teacher has not seen counts as 0, not as an error."""
    seen = answer(logits(0), 4, 1.0)
    ids, log_probs = seen.ids.clone(), seen.log_probs.clone()
    ids[1, 2], log_probs[1, 2] = -1, -torch.inf
    teacher = seen.teacher.clone()
    teacher[1, 2] = -1
    batch = SoftLabelBatch(ids=ids, log_probs=log_probs, log_tail=seen.log_tail, teacher=teacher)
    found = mean_answer_entropy([batch], TABLE)
    assert found[1, 2] == 0
    assert found.isfinite().all()


def test_shares_find_the_teacher_whatever_its_scale() -> None:
    """The teacher that is surer than usual gets the larger share, also if its units differ."""
    generator = torch.Generator().manual_seed(0)
    knows = torch.arange(200) % 2
    entropy = 1 + torch.rand(2, 200, generator=generator)
    entropy[knows, torch.arange(200)] *= 0.2
    shares = expertise(entropy, 5.0)
    torch.testing.assert_close(shares.sum(dim=0), torch.ones(200))
    assert (shares.argmax(dim=0) == knows).all()
    scaled = expertise(entropy * torch.tensor([[10.0], [0.1]]), 5.0)
    torch.testing.assert_close(scaled, shares)


def test_no_sharpness_makes_all_teachers_alike() -> None:
    """Sharpness 0 gives each teacher 1/T."""
    shares = expertise(torch.rand(4, 9, generator=torch.Generator().manual_seed(1)), 0.0)
    torch.testing.assert_close(shares, torch.full((4, 9), 0.25))
