"""Compact CNN structure learning: its objective, its stages, and a run that is stopped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.compress.cost import cost
from pipeline.config import Compact, InputConfig, StudentConfig
from pipeline.data.epoch_order import BatchOrder
from pipeline.data.loader import BatchDataset
from pipeline.models.student import Student, build_student
from pipeline.models.weights import save_weights
from pipeline.numerics import SoftLabelBatch
from pipeline.objectives import Method, MethodInputs, build_method
from pipeline.objectives.base import LabelContext, StudentOutput, TargetBatch
from pipeline.objectives.compact import CompactObjective, student_groups
from pipeline.objectives.stored_signals import StoredSignals
from pipeline.training.fit import FitResult
from pipeline.training.fit_stages import fit_stages
from pipeline.training.prediction import load_student_folder
from pipeline.workspace import write_record
from storage_schemas.errors import ConfigError, TrainingError
from storage_schemas.label_space import LabelSpace

SPACE = LabelSpace(classes=("a/0", "a/1", "b/0", "b/1"))
ROWS = np.arange(24, dtype=np.int64)
SMALL = {
    "name": "compact",
    "temperature": 1.0,
    "soft_weight": 0.75,
    "budget": {"default": 0.5, "blocks.1": 0.3},
}


def settings(**objective: object) -> StudentConfig:
    """A small student, two epochs of each stage, checkpoints every two steps."""
    return StudentConfig(
        builder="pipeline.models.backbones:glyph_resnet",
        builder_args={"width": 8},
        input={"size": 32, "channels": 1},
        objective={**SMALL, **objective},
        epochs=4,
        batch_size=6,
        checkpoint_every_steps=2,
        log_every_steps=1,
    )


def targets(rows: np.ndarray, views: np.ndarray | None = None) -> TargetBatch:
    """The class of a row is its number modulo the classes; its teacher knows all four."""
    labels = torch.from_numpy(rows % len(SPACE))
    ids = torch.stack([labels, (labels + 1) % len(SPACE)], dim=1).unsqueeze(0)
    return TargetBatch(
        labels=labels,
        soft=SoftLabelBatch(
            ids=ids,
            log_probs=torch.tensor([0.7, 0.2]).log().expand(ids.shape).contiguous(),
            log_tail=torch.full((1, len(rows)), 0.1).log(),
            teacher=torch.zeros(1, len(rows), dtype=torch.int64),
        ),
    )


def images(rows: np.ndarray, views: np.ndarray | None = None) -> torch.Tensor:
    """Images as a function of the row."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(24, 1, 32, 32, generator=generator)[torch.from_numpy(rows)]


def method(config: StudentConfig) -> Method:
    """The method over a fresh student."""
    torch.manual_seed(1)
    context = LabelContext(
        num_classes=len(SPACE),
        vertical_of=torch.from_numpy(SPACE.vertical_of),
        supports=(torch.arange(len(SPACE)),),
    )
    inputs = MethodInputs(
        config=config,
        student=build_student(config, SPACE),
        context=context,
        signals=StoredSignals(ROWS % len(SPACE)),
        rows=ROWS,
        views=1,
    )
    return build_method(inputs, "student")


def objective_of(made: Method) -> CompactObjective:
    """The objective of the first stage."""
    objective = made.stages[0].objective
    assert isinstance(objective, CompactObjective)
    return objective


def run(
    folder: Path, report: Callable[[int, int, Mapping[str, float]], None] | None = None
) -> FitResult:
    """Train both stages."""
    order = BatchOrder(rows=ROWS, batch_size=6, views=1, seed=3)
    dataset = BatchDataset(images, targets)
    device = torch.device("cpu")
    return fit_stages(
        method(settings()), dataset, order, settings(), folder, device=device, report=report
    )


def terms(made: Method, logits: torch.Tensor) -> dict[str, torch.Tensor]:
    """The terms of six rows in the structure stage."""
    output = StudentOutput(logits=logits, features=logits)
    return objective_of(made)(output, targets(ROWS[:6]))


def test_hard_and_soft_labels_take_their_shares() -> None:
    """`soft_weight` is the share of soft labels, the rest that of hard ones; 0 leaves one out."""
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(2))
    found = {
        weight: terms(method(settings(soft_weight=weight)), logits) for weight in (0.0, 0.75, 1.0)
    }
    assert "kd_loss" not in found[0.0]
    assert "task_loss" not in found[1.0]
    torch.testing.assert_close(found[0.75]["kd_loss"], 0.75 * found[1.0]["kd_loss"])
    torch.testing.assert_close(found[0.75]["task_loss"], 0.25 * found[0.0]["task_loss"])


def test_sparsity_presses_on_the_scales_alone() -> None:
    """It has a gradient in all scales of normalisation, and presses harder while above budget."""
    made = method(settings())
    first, *_, last = (terms(made, torch.zeros(6, 4))["sparsity_loss"] for _ in range(3))
    assert last > first
    last.backward()
    moved = {n for n, p in made.network.named_parameters() if p.grad is not None}
    scales = student_groups(made.network, settings().input).scales  # type: ignore[arg-type]
    assert moved == {f"{name}.weight" for name in scales}


def test_the_cut_student_is_within_every_budget(tmp_path: Path) -> None:
    """Each block has at most its share of operations, and `predict` loads what was kept."""
    student = run(tmp_path).model
    assert isinstance(student, Student)
    before = build_student(settings(), SPACE)
    shares = settings().objective.budget
    groups = [student_groups(network, settings().input) for network in (before, student)]
    for block in ("stem", "blocks.0", "blocks.1", "blocks.2", "head"):
        costs = [
            sum(
                layer.flops * len(layer.writes) * (1 if layer.reads is None else len(layer.reads))
                for layer in found.layers
                if layer.name.startswith((f"backbone.{block}", block))
            )
            for found in groups
        ]
        assert 0 < costs[1] <= shares.get(block, shares["default"]) * costs[0]
    assert (
        cost(student, InputConfig(size=32, channels=1)).flops
        < cost(before, settings().input).flops / 2
    )
    save_weights(student, tmp_path / "weights.safetensors")
    record = {
        "student": settings().model_dump(mode="json"),
        "label_space": SPACE.to_dict(),
        "structure": student.structure,
    }
    write_record(tmp_path / "student.json", record)
    loaded, _, _ = load_student_folder(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(images(ROWS)).logits, student(images(ROWS)).logits)
    write_record(
        tmp_path / "student.json", record | {"structure": {"backbone.stem.0": [1, 10**13]}}
    )
    with pytest.raises(TrainingError, match="not a sound student"):
        load_student_folder(tmp_path)


@pytest.mark.parametrize("stop", [3, 8, 13])
def test_a_stopped_run_ends_with_the_same_weights(tmp_path: Path, stop: int) -> None:
    """Killed in either stage or between them, it goes on to the same student, bit for bit."""
    whole = run(tmp_path / "whole")

    class Stopped(Exception):
        """Stands for a kill."""

    def stopping(step: int, total: int, values: Mapping[str, float]) -> None:
        if step == stop:
            raise Stopped

    with pytest.raises(Stopped):
        run(tmp_path / "stopped", stopping)
    rest = run(tmp_path / "stopped")
    assert rest.resumed_from > 0
    assert rest.model.structure == whole.model.structure
    states = whole.model.state_dict(), rest.model.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize(
    ("update", "match"),
    [
        ({"budget": {"default": 0.5, "layer9": 0.1}}, r"must name modules .*blocks.0.*layer9"),
        ({"budget": {"default": 0.001}}, r"no less than .* is possible"),
    ],
)
def test_a_wrong_budget_is_refused_before_training(update: dict[str, object], match: str) -> None:
    """The method is not put together."""
    with pytest.raises(ConfigError, match=match):
        method(settings(**update))


def test_one_epoch_is_too_few() -> None:
    """Two stages need two epochs."""
    with pytest.raises(ConfigError, match="at least 2 epochs"):
        method(settings().model_copy(update={"epochs": 1}))


def test_one_budget_for_all_blocks() -> None:
    """Without blocks of their own, one weight presses on all scales."""
    objective = objective_of(method(settings(per_block=False, budget={"default": 0.5})))
    assert objective.sparsity is not None
    assert objective.sparsity.budgets.shape == (1,)
    with pytest.raises(ValueError, match="per_block"):
        Compact(name="compact", per_block=False, budget={"default": 0.5, "blocks.0": 0.1})
