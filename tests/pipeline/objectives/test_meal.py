"""What MEAL computes, draws and trains, beside what every objective promises."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.config import Adversarial, BlockSimilarity, Meal, TrainingConfig, load_project
from pipeline.data.epoch_order import BatchOrder
from pipeline.data.loader import BatchDataset
from pipeline.numerics import SoftLabelBatch
from pipeline.objectives import build_objective
from pipeline.objectives.base import (
    BlockFeatureBatch,
    LabelContext,
    StudentOutput,
    TargetBatch,
)
from pipeline.objectives.meal import MealObjective
from pipeline.objectives.method import Stage
from pipeline.training.fit import fit
from pipeline.training.optimization import build_optimizer
from storage_schemas.errors import ConfigError, TrainingError

SHIPPED = Path(__file__).parents[3] / "flows" / "configs" / "meal.yaml"
B, C, K = 8, 10, 4
CONTEXT = LabelContext(
    num_classes=C,
    vertical_of=torch.zeros(C, dtype=torch.int64),
    supports=(torch.arange(C), torch.arange(C), torch.arange(4)),
    teachers=("wide", "deep", "other"),
    features={"wide/body.channel_mean": (1, 2, 2), "deep/body.channel_mean": (1, 2, 2)},
)
BLOCK = BlockSimilarity(student="body", feature="body.channel_mean", weight=0.5)


def meal(**settings: object) -> MealObjective:
    """The objective in training mode, with discriminators of known weights."""
    torch.manual_seed(0)
    objective = build_objective(Meal.model_validate({"name": "meal", **settings}), CONTEXT)
    assert isinstance(objective, MealObjective)
    return objective


def targets(rows: int = B, *, seed: int = 0) -> TargetBatch:
    """Labels of two teachers a row, and maps of both; `deep` was not run on the last row."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(2, rows, C, generator=generator, dtype=torch.float64)
    log_probs, ids = logits.log_softmax(2).topk(K)
    teacher = torch.tensor([[0], [1]]).repeat(1, rows)
    tail = (1 - log_probs.exp().sum(2)).log()
    present = torch.ones(rows, dtype=torch.bool)
    absent = present.clone()
    absent[-1] = False
    return TargetBatch(
        soft=SoftLabelBatch(ids=ids, log_probs=log_probs, log_tail=tail, teacher=teacher),
        features={
            name: BlockFeatureBatch(
                values=torch.randn(rows, 1, 2, 2, generator=generator), present=there
            )
            for name, there in zip(CONTEXT.features, (present, absent), strict=True)
        },
    )


def student(rows: int = B, *, seed: int = 1) -> StudentOutput:
    """Logits and one block of three channels, both with a gradient."""
    generator = torch.Generator().manual_seed(seed)
    return StudentOutput(
        logits=torch.randn(rows, C, generator=generator, dtype=torch.float64).requires_grad_(),
        features=torch.zeros(rows, 2),
        blocks={"body": torch.randn(rows, 3, 4, 4, generator=generator).requires_grad_()},
    )


def drawn(objective: MealObjective, steps: int) -> list[float]:
    """The loss of each of some steps, which tells whom each step drew."""
    return [objective(student(), targets())["kd_loss"].item() for _ in range(steps)]


def test_each_batch_draws_one_of_the_teachers() -> None:
    """A step's loss is that of either teacher alone, and both come about equally often."""
    alone = [drawn(meal(teachers=[name]), 1)[0] for name in ("wide", "deep")]
    found = drawn(meal(), 60)
    assert set(found) == set(alone)
    assert 20 < found.count(alone[0]) < 40


def test_draws_do_not_depend_on_other_random_numbers_and_go_on_after_a_resume() -> None:
    """They follow the seed and the step, whatever dropout draws on this rank."""
    expected = drawn(meal(), 12)
    objective = meal()
    first = drawn(objective, 5)
    state = objective.state_dict()
    torch.rand(17)
    resumed = build_objective(Meal(name="meal"), CONTEXT)
    resumed.load_state_dict(state)
    assert first + drawn(resumed, 7) == expected


def test_mean_is_of_probabilities_not_of_losses() -> None:
    """The loss is the KL to the mean distribution: 0 for a student that has just that."""
    soft = targets().soft
    unstored = torch.ones(2, B, C, dtype=torch.float64).scatter_(2, soft.ids, 0.0)
    dense = unstored * (soft.log_tail.exp() / (C - K)).unsqueeze(2)
    dense = dense.scatter(2, soft.ids, soft.log_probs.exp())
    output = StudentOutput(logits=dense.mean(0).log(), features=torch.zeros(B, 2))
    found = meal(teacher="mean")(output, targets())["kd_loss"].item()
    assert found == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("similarity", ["cross_entropy", "l1", "l2"])
def test_similarity_is_that_of_dense_maps(similarity: str) -> None:
    """Channel means are pooled to the stored grid; rows whose teacher has no map do not count."""
    output, wanted = student(), targets()
    terms = meal(teachers=["deep"], blocks=[BLOCK], similarity=similarity)(output, wanted)
    maps = output.blocks["body"].mean(1).reshape(B, 2, 2, 2, 2).mean((2, 4)).flatten(1)[:-1]
    stored = wanted.features["deep/body.channel_mean"].values.flatten(1)[:-1]
    expected = {
        "cross_entropy": functional.cross_entropy(maps, stored.softmax(1)),
        "l1": functional.l1_loss(maps, stored),
        "l2": functional.mse_loss(maps, stored),
    }[similarity]
    torch.testing.assert_close(terms["similarity_loss"], 0.5 * expected)


def test_maps_of_several_teachers_are_averaged_as_they_are_compared() -> None:
    """The target of a row is the mean over its teachers that have the map."""
    output, wanted = student(), targets()
    terms = meal(teacher="mean", blocks=[BLOCK])(output, wanted)
    maps = functional.adaptive_avg_pool2d(output.blocks["body"].mean(1, keepdim=True), 2).flatten(1)
    wide, deep = (f.values.flatten(1).softmax(1) for f in wanted.features.values())
    mean = torch.cat([(wide[:-1] + deep[:-1]) / 2, wide[-1:]])
    torch.testing.assert_close(terms["similarity_loss"], 0.5 * functional.cross_entropy(maps, mean))


def test_discriminator_sees_the_stored_classes_alone() -> None:
    """What the student says of other classes, and the label's even tail, are hidden from it."""
    settings = {"teachers": ["wide"], "adversarial": Adversarial(classes=6)}
    wanted, output = targets(), student()
    hidden = output.logits.detach() + 5
    hidden = hidden.scatter(1, wanted.soft.ids[0], output.logits.gather(1, wanted.soft.ids[0]))
    other = StudentOutput(logits=hidden, features=output.features)
    first, second = (
        meal(**settings)(found, wanted)["adversarial_loss"] for found in (output, other)
    )
    assert torch.equal(first, second)
    alike = torch.zeros(B, C, dtype=torch.float64).scatter(
        1, wanted.soft.ids[0], wanted.soft.log_probs[0]
    )
    equal = StudentOutput(logits=alike, features=output.features)
    undecided = meal(**settings)(equal, wanted)["adversarial_loss"].item()
    assert undecided >= math.log(2) - 1e-6


def test_discriminators_count_only_what_they_look_at() -> None:
    """Where no teacher of a batch has the block, the discriminator of the logits stands alone."""
    wanted, output = targets(), student()
    for stored in wanted.features.values():
        stored.present.fill_(False)
    found = meal(blocks=[BLOCK], adversarial=Adversarial())(output, wanted)
    alone = meal(adversarial=Adversarial())(output, wanted)
    for name in ("adversarial_loss", "discriminator_accuracy"):
        torch.testing.assert_close(found[name], alone[name])
    assert found["similarity_loss"].item() == 0


def test_discriminators_train_at_their_own_rate() -> None:
    """The optimizer has the weights of both at the rate of the settings, the student's at its."""
    objective = meal(blocks=[BLOCK], adversarial=Adversarial(lr=0.007))
    assert len(objective.discriminators) == 2
    optimizer = build_optimizer(TrainingConfig().optimizer, (nn.Linear(2, 2), objective))
    rates = {group["lr"]: len(group["params"]) for group in optimizer.param_groups}
    assert rates[0.007] == 6  # the biases of two discriminators, in the last group of that rate
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 2 + 12
    assert optimizer.param_groups[0]["lr"] == TrainingConfig().optimizer.lr


def test_what_does_not_fit_is_refused() -> None:
    """Mixed grids and a mean over other classes are named."""
    mixed = LabelContext(
        num_classes=C,
        vertical_of=CONTEXT.vertical_of,
        supports=CONTEXT.supports,
        teachers=CONTEXT.teachers,
        features=CONTEXT.features | {"deep/body.channel_mean": (1, 4, 4)},
    )
    with pytest.raises(ConfigError, match=r"one channel and one grid.*\(1, 4, 4\)"):
        build_objective(Meal(name="meal", blocks=(BLOCK,)), mixed)
    wanted = targets()
    wanted.soft.teacher[1, 3] = 2
    with pytest.raises(TrainingError, match=r"same classes, got \['wide', 'other'\]"):
        meal(teacher="mean")(student(), wanted)


def test_names_are_checked_with_the_project() -> None:
    """Teachers and features that the project does not have are found before anything runs."""
    settings = Meal(name="meal", teachers=("high", "wide"), blocks=(BLOCK,))
    problems = settings.problems_with(
        {"wide": ["tail.channel_mean"], "deep": ["body.channel_mean"]}
    )
    assert problems[0] == "student.objective.teachers must be among ['deep', 'wide'], got ['high']"
    assert "one of ['tail.channel_mean'], got 'body.channel_mean'" in problems[1]
    assert not Meal(name="meal", blocks=(BLOCK,)).problems_with({"deep": ["body.channel_mean"]})
    with pytest.raises(ConfigError, match=r"teachers must be among .*'wide'\], got \['nobody'\]"):
        load_project(SHIPPED, ["student.objective.teachers=[nobody]"])


class TinyStudent(nn.Module):
    """A network with dropout whose block is handed to the objective."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = nn.Conv2d(1, 3, 3), nn.Linear(3, C)

    def forward(self, images: Tensor) -> StudentOutput:
        block = self.body(images)
        features = functional.dropout(block.mean((2, 3)), 0.3, self.training)
        return StudentOutput(logits=self.fc(features), features=features, blocks={"body": block})


def test_resumed_run_ends_bitwise_like_one_that_was_not(tmp_path) -> None:
    """Draws, discriminators and their optimizer go on where the checkpoint has them."""

    def run(folder, kill_at=None):
        objective = meal(blocks=[BLOCK], adversarial=Adversarial())
        torch.manual_seed(1)
        model = TinyStudent()

        def report(step, total, values):
            if step == kill_at:
                raise KeyboardInterrupt

        fit(
            model,
            Stage(name="student", objective=objective, epochs=2),
            BatchDataset(
                lambda rows, views: (
                    torch.from_numpy(rows).float()[:, None, None, None]
                    / 60
                    * torch.ones(1, 1, 6, 6)
                ),
                lambda rows, views: targets(len(rows), seed=int(rows[0])),
            ),
            BatchOrder(rows=np.arange(60), batch_size=10, views=1, seed=3),
            TrainingConfig(checkpoint_every_steps=4),
            folder,
            device=torch.device("cpu"),
            report=report,
        )
        return [*model.state_dict().values(), *objective.discriminators.state_dict().values()]

    expected = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", kill_at=7)
    for found, wanted in zip(run(tmp_path / "killed"), expected, strict=True):
        assert torch.equal(found, wanted)
