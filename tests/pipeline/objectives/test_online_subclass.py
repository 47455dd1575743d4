"""Online Subclass KD: who is drawn to whom, what is remembered, and what it may be added to."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.config import (
    HardLabels,
    KnowledgeConcentration,
    OnlineSubclass,
    OnlineSubclassTerm,
    SoftLabels,
    StudentConfig,
)
from pipeline.numerics import SoftLabelBatch
from pipeline.objectives import build_objective, build_student_objective
from pipeline.objectives.base import LabelContext, StudentOutput, TargetBatch, total_loss
from pipeline.objectives.online_subclass import SubclassTerm

C, D = 5, 4
CONTEXT = LabelContext(num_classes=C, vertical_of=torch.zeros(C), supports=(), feature_dim=D)
LABELS = torch.tensor([0, 0, 0, 1, 1, 0, -1, -1, 2])


def term(**settings: object) -> SubclassTerm:
    """The term alone, at weight 1."""
    config = {"name": "online_subclass", "weight": 1.0} | settings
    return SubclassTerm(OnlineSubclassTerm.model_validate(config), CONTEXT)


def output(seed: int = 0) -> StudentOutput:
    """Float64 logits and features of nine images that want a gradient."""
    generator = torch.Generator().manual_seed(seed)
    logits, features = (
        torch.randn(len(LABELS), width, generator=generator, dtype=torch.float64).requires_grad_()
        for width in (C, D)
    )
    return StudentOutput(logits=logits, features=features)


def partners_of(row: int, points: Tensor, neighbours: int) -> list[int]:
    """The nearest rows of the same class, by a loop."""
    others = [i for i in range(len(LABELS)) if i != row and LABELS[i] == LABELS[row] >= 0]
    near = sorted(others, key=lambda other: (points[row] - points[other]).norm().item())
    return near[:neighbours]


@pytest.mark.parametrize("representation", ["features", "logits"])
@pytest.mark.parametrize("neighbours", [1, 2, 9])
def test_distance_to_the_nearest_of_the_class(representation: str, neighbours: int) -> None:
    """It is the mean squared distance of unit vectors to the mean of the nearest of the class."""
    found = output()
    points = functional.normalize(getattr(found, representation), dim=1)
    losses = []
    for row in range(len(LABELS)):
        near = partners_of(row, points, neighbours)
        if near:
            losses.append((points[row] - points[near].mean(0).detach()).square().sum())
    expected = torch.stack(losses).mean()
    terms = term(representation=representation, neighbours=neighbours)(
        found, TargetBatch(labels=LABELS)
    )
    torch.testing.assert_close(terms["subclass_loss"], expected)
    assert terms["partner_share"].item() == pytest.approx(6 / 9)
    wanted, given = (
        torch.autograd.grad(loss, getattr(found, representation), retain_graph=True)[0]
        for loss in (expected, terms["subclass_loss"])
    )
    torch.testing.assert_close(given, wanted)  # none flows through the partners


def test_probability_form_is_the_divergence_of_the_mean() -> None:
    """T^2 KL(mean softmax of the partners || own softmax), partners found by features."""
    found, t = output(), 3.0
    points = functional.normalize(found.features, dim=1)
    probs = found.logits.div(t).softmax(1).detach()
    log_probs = found.logits.div(t).log_softmax(1)
    losses = []
    for row in range(len(LABELS)):
        near = partners_of(row, points, 2)
        if near:
            target = probs[near].mean(0)
            losses.append(functional.kl_div(log_probs[row], target, reduction="sum"))
    settings = {"form": "probability", "softening": t, "neighbours": 2}
    terms = term(**settings)(found, TargetBatch(labels=LABELS))
    torch.testing.assert_close(terms["subclass_loss"], t**2 * torch.stack(losses).mean())


def test_controls_draw_to_the_class_mean_or_to_any() -> None:
    """`class_mean` has all others of the class as partners; `random` some, by the global seed."""
    targets = TargetBatch(labels=LABELS)
    mean = term(partner="class_mean")(output(), targets)
    every = term(neighbours=len(LABELS))(output(), targets)
    torch.testing.assert_close(mean["subclass_loss"], every["subclass_loss"])
    losses = []
    for seed in (0, 0, 1, 2, 3):
        torch.manual_seed(seed)
        losses.append(term(partner="random")(output(), targets)["subclass_loss"].item())
    assert losses[0] == losses[1]
    assert len(set(losses)) > 1
    assert min(losses) > term()(output(), targets)["subclass_loss"].item()


def test_no_partner_no_loss() -> None:
    """Classes met once, unlabelled and mixed images have no partner and no gradient."""
    found = output()
    alone = TargetBatch(labels=torch.tensor([0, 1, 2, 3, 4, -1, -1, -1, -1]))
    mixed = TargetBatch(labels=LABELS, mix_weight=torch.full((9,), 0.5))
    for targets in (alone, mixed):
        terms = term()(found, targets)
        assert terms["subclass_loss"].item() == terms["partner_share"].item() == 0
        (gradient,) = torch.autograd.grad(terms["subclass_loss"], found.features)
        assert not gradient.any()


@pytest.mark.parametrize("form", ["distance", "probability"])
def test_the_bank_holds_the_last_rows_and_is_saved(form: str) -> None:
    """The rows of earlier batches are partners, the oldest give way, a loaded bank goes on."""
    one = TargetBatch(labels=torch.arange(9) % C)
    banked, plain = term(bank=12, form=form), term(form=form)
    assert banked(output(1), one)["subclass_loss"].item() == pytest.approx(
        plain(output(1), one)["subclass_loss"].item(), rel=1e-6
    )
    banked(output(2), one)
    points = [functional.normalize(output(seed).features, dim=1).float() for seed in (1, 2)]
    kept = torch.cat([points[1][3:], points[0][6:], points[1][:3]])  # a ring of 12 places
    order = torch.cat([kept[:6], kept[6:]])
    found = {tuple(row) for row in banked.bank_points.tolist()}
    assert found == {tuple(row) for row in order.tolist()}
    assert banked.bank_labels.bincount(minlength=C).sum() == 12
    other = term(bank=12, form=form)
    other.load_state_dict(banked.state_dict())
    again = [objective(output(3), one)["subclass_loss"] for objective in (banked, other)]
    assert torch.equal(*again)
    assert not torch.equal(again[0], plain(output(3), one)["subclass_loss"])


def test_the_bank_rests_in_evaluation() -> None:
    """Outside training nothing is remembered."""
    banked = term(bank=4).eval()
    banked(output(), TargetBatch(labels=LABELS))
    assert (banked.bank_labels == -1).all()


@pytest.mark.parametrize(
    "objective",
    [
        HardLabels(name="hard_labels"),
        SoftLabels(name="soft_labels"),
        KnowledgeConcentration(name="knowledge_concentration"),
    ],
    ids=lambda config: config.name,
)
def test_the_term_joins_other_objectives(objective: HardLabels) -> None:
    """As an auxiliary term it adds its loss and its needs to those of the objective."""
    context = dataclasses.replace(CONTEXT, supports=(torch.arange(C),))
    config = StudentConfig(objective=objective, auxiliary=[{"name": "online_subclass"}])
    alone, joined = build_objective(objective, context), build_student_objective(config, context)
    assert joined.needs == alone.needs | {"labels"}
    soft = SoftLabelBatch(
        ids=torch.arange(2).expand(1, 9, 2),
        log_probs=torch.tensor([0.7, 0.2]).log().expand(1, 9, 2),
        log_tail=torch.full((1, 9), 0.1).log(),
        teacher=torch.zeros(1, 9, dtype=torch.int64),
    )
    targets = TargetBatch(labels=LABELS, soft=soft)
    found = output()
    expected = total_loss(alone(found, targets)) + term(weight=0.1)(found, targets)["subclass_loss"]
    torch.testing.assert_close(total_loss(joined(found, targets)), expected)


def test_as_an_objective_it_is_cross_entropy_and_the_term() -> None:
    """`online_subclass` equals `hard_labels` with the auxiliary term."""
    method = OnlineSubclass(name="online_subclass", label_smoothing=0.1)
    hard = HardLabels(name="hard_labels", label_smoothing=0.1)
    both = StudentConfig(objective=hard, auxiliary=[{"name": "online_subclass"}])
    targets = TargetBatch(labels=LABELS)
    first, second = (
        build_student_objective(config, CONTEXT)(output(), targets)
        for config in (StudentConfig(objective=method), both)
    )
    assert set(first) == {"task_loss", "subclass_loss", "partner_share"}
    assert torch.equal(total_loss(first), total_loss(second))


def test_unused_settings_leave_the_fingerprint_alone() -> None:
    """A student without auxiliary terms and class-aware batches is described as before."""
    described = StudentConfig().model_dump(mode="json")
    assert not {"auxiliary", "samples_per_class"} & set(described)
    used = StudentConfig(samples_per_class=4, auxiliary=[{"name": "online_subclass"}])
    assert used.model_dump(mode="json")["samples_per_class"] == 4
    assert StudentConfig.model_validate(used.model_dump(mode="json")) == used
