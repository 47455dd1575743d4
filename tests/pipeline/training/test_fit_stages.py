"""Several stages, one after another: what one hands to the next, and where a stop goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.config import HardLabels, StudentConfig
from pipeline.data.epoch_order import BatchOrder
from pipeline.data.loader import BatchDataset
from pipeline.models.student import Student, build_student
from pipeline.objectives import Method, Stage, build_objective
from pipeline.objectives.base import LabelContext, TargetBatch
from pipeline.report.material import read_curves
from pipeline.training.fit import FitResult
from pipeline.training.fit_stages import fit_stages
from storage_schemas.label_space import LabelSpace

SPACE = LabelSpace(classes=("a/0", "a/1", "b/0", "b/1"))
CONFIG = StudentConfig(
    builder="pipeline.models.backbones:glyph_resnet",
    builder_args={"width": 8},
    input={"size": 32, "channels": 1},
    checkpoint_every_steps=2,
    log_every_steps=1,
)
ORDER = BatchOrder(rows=np.arange(24, dtype=np.int64), batch_size=6, views=1, seed=3)


class Stopped(Exception):
    """Stands for a kill."""


def read_images(rows: np.ndarray, views: np.ndarray) -> torch.Tensor:
    """Images as a function of the row."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(24, 1, 32, 32, generator=generator)[torch.from_numpy(rows)]


def fetch_targets(rows: np.ndarray, views: np.ndarray) -> TargetBatch:
    """The class of a row is its number modulo the classes."""
    return TargetBatch(labels=torch.from_numpy(rows % len(SPACE)))


def doubled(network: nn.Module) -> nn.Module:
    """Change the network between the stages, as surgery does."""
    assert isinstance(network, Student)
    with torch.no_grad():
        network.head.fc.weight.mul_(2)
    return network


def method() -> Method:
    """The head alone for an epoch on half the rows, a change of its weights, then everything."""
    torch.manual_seed(1)
    context = LabelContext(
        num_classes=len(SPACE), vertical_of=torch.from_numpy(SPACE.vertical_of), supports=()
    )
    objective = build_objective(HardLabels(name="hard_labels"), context)

    def half(order: BatchOrder) -> BatchOrder:
        return BatchOrder(rows=order.rows[::2], batch_size=6, views=1, seed=order.seed)

    return Method(
        network=build_student(CONFIG, SPACE),
        stages=(
            Stage(
                name="head",
                objective=objective,
                epochs=1,
                trains=("head",),
                order=half,
                finish=doubled,
            ),
            Stage(name="all", objective=objective, epochs=2),
        ),
    )


def run(
    folder: Path, report: Callable[[int, int, Mapping[str, float]], None] | None = None
) -> tuple[Method, FitResult]:
    """Train both stages."""
    made = method()
    device = torch.device("cpu")
    dataset = BatchDataset(read_images, fetch_targets)
    return made, fit_stages(made, dataset, ORDER, CONFIG, folder, device=device, report=report)


def test_stages_follow_one_another(tmp_path: Path) -> None:
    """Each stage trains what it may on its rows, and steps are counted over all of them."""
    before = {name: value.clone() for name, value in method().network.state_dict().items()}
    seen: list[tuple[int, int]] = []
    trained_alone: list[bool] = []
    made = method()

    def report(step: int, total: int, values: Mapping[str, float]) -> None:
        seen.append((step, total))
        weight = made.network.backbone.state_dict()["stem.0.weight"]
        trained_alone.append(torch.equal(weight, before["backbone.stem.0.weight"]))

    dataset = BatchDataset(read_images, fetch_targets)
    result = fit_stages(
        made, dataset, ORDER, CONFIG, tmp_path, device=torch.device("cpu"), report=report
    )
    assert seen == [(step, 10) for step in range(1, 11)]
    assert trained_alone[:2] == [True, True]
    assert not any(trained_alone[2:])
    assert (result.steps, result.resumed_from) == (10, 0)


@pytest.mark.parametrize("stop", [1, 2, 5, 9])
def test_a_stopped_run_goes_on_in_its_stage(tmp_path: Path, stop: int) -> None:
    """A run stopped in either stage ends with the weights of one that was not, bit for bit."""
    _, whole = run(tmp_path / "whole")

    def stopping(step: int, total: int, values: Mapping[str, float]) -> None:
        if step == stop:
            raise Stopped

    with pytest.raises(Stopped):
        run(tmp_path / "stopped", stopping)
    _, rest = run(tmp_path / "stopped")
    assert rest.resumed_from == (stop - 1) // 2 * 2
    for first, second in zip(
        whole.model.state_dict().values(), rest.model.state_dict().values(), strict=True
    ):
        assert torch.equal(first, second)


def test_the_report_shows_all_stages(tmp_path: Path) -> None:
    """The curves of the stages follow one another, with epochs that go on counting."""
    run(tmp_path)
    curves = read_curves(tmp_path)
    assert curves["epoch"] == sorted(curves["epoch"])
    assert curves["epoch"][-1] == 3
    assert len(curves["epoch"]) == len(curves["task_loss"]) == 10
