"""Losses on sampled and top_p labels: draws are unbiased, top-k is not, short rows are right."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.config import KnowledgeConcentration, ObjectiveConfig, SoftLabels
from pipeline.numerics import (
    SoftLabelBatch,
    SupportTable,
    count_draws,
    draw_counts,
    factorised_kl,
    nucleus,
    sparse_kl,
    sparsify,
)
from pipeline.objectives import build_objective
from pipeline.objectives.base import LabelContext, StudentOutput, TargetBatch, total_loss
from storage_schemas.label_draws import draw_uniforms
from storage_schemas.soft_labels import SoftLabelSchema, decode, encode, encode_counts

C, K = 12, 4
SUPPORT = torch.arange(2, 10)  # of the teacher, 8 of the student's 12 classes
SUPPORTS = SupportTable.from_supports((SUPPORT,), C)
CONTEXT = LabelContext(
    num_classes=C, vertical_of=torch.tensor([0] * 2 + [1] * 8 + [2] * 2), supports=(SUPPORT,)
)
TEACHER = torch.tensor([1.5, 1.2, 0.9, 0.3, 0.1, -0.4, -1.0, -2.5], dtype=torch.float64)
STUDENT = torch.randn(C, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 1.5


def schema_of(temperature: float, selection: str = "sampled", k: int = K) -> SoftLabelSchema:
    return SoftLabelSchema.model_validate(
        {
            "teacher": "a",
            "num_rows": 1,
            "num_views": 1,
            "k": k,
            "num_classes": len(SUPPORT),
            "selection": selection,
            "top_p": 0.7 if selection == "top_p" else None,
            "precision": "exact",
            "temperatures": (temperature,),
            "shard_rows": 1,
            "chunk_rows": 1,
            "classes": tuple(f"a/{i}" for i in range(len(SUPPORT))),
            "global_ids": tuple(SUPPORT.tolist()),
        }
    )


def batch_of(schema: SoftLabelSchema, codes: tuple[np.ndarray, np.ndarray]) -> SoftLabelBatch:
    """Stored values of one teacher as a loss sees them, in float64."""
    found = decode(schema, *codes, schema.temperatures[0])
    ids = torch.from_numpy(found.ids)
    return SoftLabelBatch(
        ids=torch.where(ids < 0, -1, SUPPORT[ids.clamp(min=0)])[None],
        log_probs=torch.from_numpy(found.log_probs)[None].double(),
        log_tail=torch.from_numpy(found.log_tail)[None].double(),
        teacher=torch.zeros(1, len(ids), dtype=torch.int64),
    )


def sampled(schema: SoftLabelSchema, counted: tuple[Tensor, Tensor]) -> SoftLabelBatch:
    ids, counts = counted
    return batch_of(schema, encode_counts(schema, ids.numpy(), counts.numpy()))


def divergences(logits: Tensor, soft: SoftLabelBatch, temperature: float) -> dict[str, Tensor]:
    """(B,) KL over all classes, and KL inside the support, at a temperature."""
    inside = factorised_kl(logits, soft, SUPPORTS, temperature=temperature)[1]
    return {"all": sparse_kl(logits, soft, SUPPORTS, temperature=temperature), "support": inside}


def dense_cross_entropy(logits: Tensor, over: str, temperature: float) -> Tensor:
    """-sum p log q of the teacher's whole answer, () float64."""
    scores = logits / temperature
    if over == "support":
        outside = torch.ones(C, dtype=torch.bool).index_fill(0, SUPPORT, False)
        scores = scores.masked_fill(outside, -torch.inf)
    p = (TEACHER / temperature).softmax(0)
    return -(p * scores.log_softmax(0)[SUPPORT]).sum()


def negative_entropy(soft: SoftLabelBatch) -> Tensor:
    stored = soft.ids[0] >= 0
    return torch.where(stored, soft.log_probs[0].exp() * soft.log_probs[0], 0.0).sum(dim=1)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("over", ["all", "support"])
def test_expected_loss_and_gradient_of_draws_are_the_dense_ones(over, temperature) -> None:
    """Summed over all 8^4 possible draws with their probabilities, exactly: to 1e-6."""
    schema = schema_of(temperature)
    drawn = torch.tensor(list(itertools.product(range(len(SUPPORT)), repeat=K)))
    chance = (TEACHER / temperature).softmax(0)[drawn].prod(dim=1)
    assert chance.sum().item() == pytest.approx(1)
    soft = sampled(schema, count_draws(drawn))
    one, two = (STUDENT.clone().requires_grad_() for _ in range(2))
    values = divergences(one.expand(len(drawn), C), soft, temperature)[over]
    # The label's own entropy does not depend on the student: the rest is the cross-entropy.
    expected_loss = (chance * (values - negative_entropy(soft))).sum()
    dense = dense_cross_entropy(two, over, temperature)
    assert expected_loss.item() == pytest.approx(dense.item(), abs=1e-6)
    (found,) = torch.autograd.grad(expected_loss, one)
    (wanted,) = torch.autograd.grad(dense, two)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    # As a KL divergence the value is larger, by what the draws lose in entropy.
    p = (TEACHER / temperature).softmax(0)
    assert (chance * negative_entropy(soft)).sum() > (p * p.log()).sum() + 0.1


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("tail", ["uniform", "bucket", "drop"])
def test_top_k_gradients_are_not_the_dense_ones(tail, temperature) -> None:
    """With as many classes kept, every treatment of the tail is off by 10,000 times the bound."""
    schema = schema_of(temperature, "top_k")
    kept = sparsify(TEACHER[None], K, (temperature,))
    codes = encode(schema, kept.ids.numpy(), kept.logits.numpy(), kept.log_tail_ratio.numpy())
    one, two = (STUDENT.clone().requires_grad_() for _ in range(2))
    value = sparse_kl(
        one[None], batch_of(schema, codes), SUPPORTS, temperature=temperature, tail=tail
    )
    (found,) = torch.autograd.grad(value.sum(), one)
    (wanted,) = torch.autograd.grad(dense_cross_entropy(two, "all", temperature), two)
    assert (found - wanted).abs().max() > 1e-2


OBJECTIVES: list[ObjectiveConfig] = [
    SoftLabels(name="soft_labels", temperature=2.0),
    SoftLabels(name="soft_labels", temperature=2.0, tail="drop"),
    KnowledgeConcentration(name="knowledge_concentration", temperature=2.0),
    KnowledgeConcentration(name="knowledge_concentration", temperature=2.0, tail="bucket"),
]


def gradient(config: ObjectiveConfig, soft: SoftLabelBatch) -> Tensor:
    logits = STUDENT.clone().requires_grad_()
    output = logits.expand(soft.ids.shape[1], C)
    objective = build_objective(config, CONTEXT)
    terms = objective(StudentOutput(logits=output, features=output), TargetBatch(soft=soft))
    return torch.autograd.grad(total_loss(terms), logits)[0]


@pytest.mark.parametrize("config", OBJECTIVES, ids=lambda config: f"{config.name} {config.tail}")
def test_the_objectives_learn_the_same_from_draws(config) -> None:
    """The mean gradient of 200,000 stored labels is within 5 standard errors of the dense one."""
    rows, t = 200_000, 2.0
    uniforms = torch.from_numpy(draw_uniforms(1, np.arange(rows), 0, K))
    soft = sampled(schema_of(t), draw_counts(TEACHER.expand(rows, -1), uniforms, t))
    whole = sparsify(TEACHER[None], len(SUPPORT), (t,))
    everything = schema_of(t, "top_k", len(SUPPORT))
    codes = encode(
        everything, whole.ids.numpy(), whole.logits.numpy(), whole.log_tail_ratio.numpy()
    )
    difference = gradient(config, soft) - gradient(config, batch_of(everything, codes))
    p = (TEACHER / t).softmax(0)
    # T^2 KL has gradient T (q - p); p is the mean of 4 draws a row. And half a step of the code.
    error = t * (p * (1 - p) / (K * rows)).sqrt()
    assert (difference[SUPPORT].abs() < 5 * error + t / 4096).all()
    outside = torch.ones(C, dtype=torch.bool).index_fill(0, SUPPORT, False)
    assert difference[outside].abs().max() < 1e-6
    best = sparsify(TEACHER[None], K, (t,))
    top = schema_of(t, "top_k")
    codes = encode(top, best.ids.numpy(), best.logits.numpy(), best.log_tail_ratio.numpy())
    biased = gradient(config, batch_of(top, codes)) - gradient(config, soft)
    assert (biased[SUPPORT].abs() > 20 * error + t / 4096).any()


@pytest.mark.parametrize("selection", ["top_p", "sampled"])
@pytest.mark.parametrize("config", OBJECTIVES, ids=lambda config: f"{config.name} {config.tail}")
def test_short_rows_have_the_gradient_of_finite_differences(config, selection) -> None:
    """Rows of different lengths, with a tail or without, pass gradcheck in every objective."""
    t = 2.0
    schema = schema_of(t, selection)
    answers = torch.randn(
        6, len(SUPPORT), generator=torch.Generator().manual_seed(4), dtype=torch.float64
    )
    if selection == "sampled":
        uniforms = torch.from_numpy(draw_uniforms(0, np.arange(6), 0, K))
        soft = sampled(schema, draw_counts(3 * answers, uniforms, t))
    else:
        kept = nucleus(3 * answers, K, 0.7, (t,))
        parts = (kept.ids.numpy(), kept.logits.numpy(), kept.log_tail_ratio.numpy())
        soft = batch_of(schema, encode(schema, *parts))
    assert len(set((soft.ids[0] >= 0).sum(dim=1).tolist())) > 1
    objective = build_objective(config, CONTEXT)

    def loss(logits: Tensor) -> Tensor:
        return total_loss(
            objective(StudentOutput(logits=logits, features=logits), TargetBatch(soft=soft))
        )

    start = torch.randn(6, C, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    assert torch.autograd.gradcheck(loss, start.requires_grad_())


@pytest.mark.parametrize("tail", ["uniform", "bucket", "drop"])
def test_a_nucleus_spreads_its_tail_over_the_classes_it_left_out(tail) -> None:
    """KL of top_p rows equals a dense sum in which the tail lies on that row's other classes."""
    schema = schema_of(1.0, "top_p")
    answers = 3 * torch.randn(9, len(SUPPORT), generator=torch.Generator().manual_seed(6))
    kept = nucleus(answers, K, 0.7, (1.0,))
    parts = (kept.ids.numpy(), kept.logits.numpy(), kept.log_tail_ratio.numpy())
    soft = batch_of(schema, encode(schema, *parts))
    logits = torch.randn(9, C, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    found = sparse_kl(logits, soft, SUPPORTS, tail=tail)
    for row in range(9):
        ids = soft.ids[0, row][soft.ids[0, row] >= 0]
        rest = torch.tensor([c for c in SUPPORT.tolist() if c not in ids.tolist()])
        p, q = torch.zeros(C, dtype=torch.float64), logits[row].softmax(0)
        p[ids] = soft.log_probs[0, row, : len(ids)].exp()
        mass = soft.log_tail[0, row].exp()
        extra = torch.zeros(())
        if tail == "uniform":
            p[rest] = mass / len(rest)
        elif tail == "bucket":
            extra = mass * (mass / q[rest].sum()).log()
        else:
            p = p / p.sum()
        expected = (p * (p / q).log()).nansum() + extra
        assert found[row].item() == pytest.approx(expected.item(), abs=1e-9)
