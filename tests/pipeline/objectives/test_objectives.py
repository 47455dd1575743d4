"""What the objectives of hard and soft labels compute."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.config import KnowledgeConcentration, SoftLabels
from pipeline.numerics import SoftLabelBatch, SupportTable, sparse_kl
from pipeline.objectives import build_objective
from pipeline.objectives.base import LabelContext, StudentOutput, TargetBatch, total_loss
from pipeline.objectives.hard_labels import hard_label_loss

B, C, K = 6, 12, 3
CONTEXT = LabelContext(
    num_classes=C,
    vertical_of=torch.tensor([0] * 5 + [1] * 7),
    supports=(torch.arange(5), torch.arange(5, 12)),
)


def targets() -> TargetBatch:
    """Hard and soft labels of six images of both verticals; the last has no teacher."""
    generator = torch.Generator().manual_seed(0)
    teacher = torch.tensor([[0, 1, 0, 1, 1, -1]])
    order = torch.rand(1, B, 5, generator=generator).argsort(2)[..., :K]
    mass = torch.rand(1, B, K + 1, generator=generator, dtype=torch.float64).log_softmax(2)
    ids = (order + 5 * (teacher == 1).unsqueeze(2)).masked_fill((teacher < 0).unsqueeze(2), -1)
    log_probs = mass[..., :K].masked_fill(ids < 0, -torch.inf)
    log_tail = mass[..., K].masked_fill(teacher < 0, -torch.inf)
    return TargetBatch(
        labels=torch.tensor([1, 7, 4, 11, 5, 2]),
        soft=SoftLabelBatch(ids=ids, log_probs=log_probs, log_tail=log_tail, teacher=teacher),
    )


def output_for(logits: Tensor) -> StudentOutput:
    """A student's output with these logits."""
    return StudentOutput(logits=logits, features=torch.zeros(len(logits), 2))


def random_logits() -> Tensor:
    """Float64 logits that want a gradient."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(B, C, generator=generator, dtype=torch.float64).mul(2).requires_grad_()


def test_hard_labels_equal_torch() -> None:
    """Without mixing it is torch's cross-entropy over the labelled images."""
    logits = random_logits()
    wanted = TargetBatch(labels=torch.tensor([1, -1, 4, 11, -1, 2]))
    found = hard_label_loss(logits, wanted, "x", label_smoothing=0.1)
    expected = functional.cross_entropy(logits, wanted.labels, ignore_index=-1, label_smoothing=0.1)
    torch.testing.assert_close(found, expected)
    nothing = TargetBatch(labels=torch.full((B,), -1))
    assert hard_label_loss(logits, nothing, "x").item() == 0


def test_mixed_images_count_both_labels() -> None:
    """The loss of a mixed image is that of a target with both labels at their weights."""
    logits = random_logits()
    labels, partners = torch.tensor([1, 7, 4, 11, 5, 2]), torch.tensor([0, 6, 4, 10, 8, 3])
    weight = torch.tensor([1.0, 0.3, 0.6, 0.5, 0.9, 0.0])
    dense = torch.zeros(B, C, dtype=torch.float64)
    dense += weight.unsqueeze(1) * functional.one_hot(labels, C)
    dense += (1 - weight).unsqueeze(1) * functional.one_hot(partners, C)
    mixed = TargetBatch(labels=labels, partner_labels=partners, mix_weight=weight)
    found = hard_label_loss(logits, mixed, "x")
    torch.testing.assert_close(found, functional.cross_entropy(logits, dense))


def test_temperature_is_squared_and_rows_without_a_teacher_do_not_count() -> None:
    """`kd_loss` is T^2 times the mean KL of the rows that have a teacher."""
    logits, wanted = random_logits(), targets()
    config = SoftLabels(name="soft_labels", temperature=2.0)
    terms = build_objective(config, CONTEXT)(output_for(logits), wanted)
    table = SupportTable.from_supports(CONTEXT.supports, C)
    rows = sparse_kl(logits, wanted.soft, table, temperature=2.0)
    torch.testing.assert_close(terms["kd_loss"], 4 * rows[:5].mean())


@pytest.mark.parametrize("tail", ["uniform", "bucket", "drop"])
def test_knowledge_concentration_at_weight_one_is_plain_distillation(tail: str) -> None:
    """With vertical_weight 1 and T = 1 the two parts sum to KL over all classes."""
    logits, wanted = random_logits(), targets()
    method = KnowledgeConcentration(name="knowledge_concentration", tail=tail)
    parts = build_objective(method, CONTEXT)(output_for(logits), wanted)
    plain = build_objective(SoftLabels(name="soft_labels", tail=tail), CONTEXT)
    torch.testing.assert_close(total_loss(parts), total_loss(plain(output_for(logits), wanted)))
    assert 0 < parts["vertical_probability"] < 1


def test_sigmoid_form_is_the_loss_of_the_paper() -> None:
    """Binary cross-entropy summed over all classes, 0 for what is not stored, mean over images."""
    logits, wanted = random_logits(), targets()
    config = KnowledgeConcentration(name="knowledge_concentration", form="sigmoid")
    dense = torch.zeros(B, C, dtype=torch.float64)
    soft = wanted.soft
    dense[:5].scatter_(1, soft.ids[0, :5], soft.log_probs[0, :5].exp())
    expected = functional.binary_cross_entropy_with_logits(logits, dense, reduction="none")
    terms = build_objective(config, CONTEXT)(output_for(logits), wanted)
    torch.testing.assert_close(terms["kd_loss"], expected[:5].sum(1).mean())
