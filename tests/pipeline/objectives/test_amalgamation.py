"""Knowledge amalgamation: its codes, its stages, and what it refuses."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.config import StudentConfig
from pipeline.data.epoch_order import BatchOrder
from pipeline.data.loader import BatchDataset
from pipeline.models.student import build_student
from pipeline.numerics import SoftLabelBatch
from pipeline.objectives import Method, MethodInputs, build_method
from pipeline.objectives.base import BlockFeatureBatch, LabelContext, TargetBatch
from pipeline.objectives.stored_signals import SignalSource
from pipeline.training.fit_stages import fit_stages
from storage_schemas.errors import ConfigError, TrainingError
from storage_schemas.label_space import LabelSpace

SPACE = LabelSpace(classes=("a/0", "a/1", "a/2", "b/0", "b/1"))
SUPPORTS = (torch.arange(3), torch.arange(3, 5))
TEACHERS = ("a", "b")
ROWS, VIEWS, K, B = 24, 2, 2, 6
SHAPES = {"blocks_1.pca": (6, 8, 8), "blocks_2.pca": (9, 4, 4)}
LAYERS = (
    {
        "block": "blocks.1",
        "features": "blocks_1.pca",
        "into": ["blocks.2.conv1", "blocks.2.shortcut.1"],
    },
    {"block": "blocks.2", "features": "blocks_2.pca", "into": ["head.fc"]},
)


class Answers(SignalSource):
    """What both teachers say of 24 rows in two views; no labels."""

    provides = frozenset({"soft", "features"})

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self._logits = [2 * torch.randn(ROWS, VIEWS, len(s), generator=generator) for s in SUPPORTS]
        self.features = {
            f"{teacher}/{name}": torch.randn(ROWS, VIEWS, *shape, generator=generator)
            for teacher in TEACHERS
            for name, shape in SHAPES.items()
        }

    def fetch(self, rows: np.ndarray, views: np.ndarray) -> TargetBatch:
        """The targets of some rows and views."""
        at = torch.from_numpy(rows), torch.from_numpy(views)
        tops = [found[at].log_softmax(dim=1).topk(K, dim=1) for found in self._logits]
        ids = torch.stack([s[top.indices] for s, top in zip(SUPPORTS, tops, strict=True)])
        log_probs = torch.stack([top.values for top in tops])
        tail = (1 - log_probs.exp().sum(dim=2)).clamp(min=0)
        soft = SoftLabelBatch(
            ids=ids,
            log_probs=log_probs,
            log_tail=torch.where(tail > 1e-6, tail, 0.0).log(),
            teacher=torch.arange(2)[:, None].expand(-1, len(rows)).contiguous(),
        )
        present = torch.ones(len(rows), dtype=torch.bool)
        features = {
            name: BlockFeatureBatch(values=values[at], present=present)
            for name, values in self.features.items()
        }
        return TargetBatch(soft=soft, features=features, rows=at[0])


def method_inputs(*, epochs: int = 4, **objective: object) -> MethodInputs:
    """A small student of both teachers."""
    config = StudentConfig(
        builder="pipeline.models.backbones:glyph_resnet",
        builder_args={"width": 8, "dropout": 0.1},
        input={"size": 32, "channels": 1},
        objective={"name": "amalgamation", **objective},
        epochs=epochs,
        checkpoint_every_steps=2,
        log_every_steps=1,
        ema_decay=0.5,
    )
    torch.manual_seed(0)
    return MethodInputs(
        config=config,
        student=build_student(config, SPACE),
        context=LabelContext(
            num_classes=len(SPACE),
            vertical_of=torch.from_numpy(SPACE.vertical_of.astype(np.int64)),
            supports=SUPPORTS,
            teachers=TEACHERS,
            features={f"{t}/{name}": shape for t in TEACHERS for name, shape in SHAPES.items()},
        ),
        signals=Answers(),
        rows=np.arange(ROWS, dtype=np.int64),
        views=VIEWS,
    )


def method(**settings: object) -> Method:
    """The method of these settings."""
    return build_method(method_inputs(**settings), "student")


def images(rows: np.ndarray, views: np.ndarray) -> Tensor:
    """Noise, as a function of row and view."""
    generator = torch.Generator().manual_seed(1)
    every = torch.randn(ROWS, VIEWS, 1, 32, 32, generator=generator)
    return every[torch.from_numpy(rows), torch.from_numpy(views)]


def test_codes_are_those_of_numpy() -> None:
    """A layer's target is a PCA of the concatenated codes, scaled to a mean variance of 1."""
    inputs = method_inputs(layers=LAYERS, layerwise_share=0.5)
    objective = build_method(inputs, "student").stages[0].objective
    features = inputs.signals.features
    rows = torch.arange(ROWS)
    both = torch.cat([features[f"{t}/blocks_1.pca"][rows, rows % VIEWS] for t in TEACHERS], dim=1)
    places = both.movedim(1, 3).reshape(-1, 12).double().numpy()
    centred = places - places.mean(0)
    _, singular, directions = np.linalg.svd(centred, full_matrices=False)
    scale = np.sqrt((singular[:8] ** 2).mean() / len(places))
    targets = inputs.signals.fetch(rows.numpy(), rows.numpy() % VIEWS)
    found = objective.forced(targets)["blocks.1"].movedim(1, 3).reshape(-1, 8).numpy()
    wanted = np.abs(centred @ directions[:8].T / scale)
    np.testing.assert_allclose(np.abs(found), wanted, atol=1e-4)


@pytest.mark.parametrize(
    ("epochs", "share", "wanted"),
    [
        (8, 0.25, {"layerwise": 2, "joint": 6}),
        (8, 0.01, {"layerwise": 1, "joint": 7}),
        (3, 0.99, {"layerwise": 2, "joint": 1}),
        (1, 0.5, {"joint": 1}),
        (8, 0.0, {"joint": 8}),
    ],
)
def test_stages_share_the_epochs(epochs: int, share: float, wanted: dict[str, int]) -> None:
    """Both stages together take the epochs of the control."""
    found = method(epochs=epochs, layers=LAYERS, layerwise_share=share)
    assert {stage.name: stage.epochs for stage in found.stages} == wanted


class Stopped(Exception):
    """Stands for a kill."""


def train(folder: Path, stop: int | None = None) -> dict[str, Tensor]:
    """Weights after both stages; with a stop, of a run that was killed there and run again."""
    order = BatchOrder(rows=np.arange(ROWS, dtype=np.int64), batch_size=B, views=VIEWS, seed=2)

    def report(step: int, total: int, values: Mapping[str, float]) -> None:
        if step == stop:
            raise Stopped

    for attempt in (report, None) if stop else (None,):
        inputs = method_inputs(epochs=2, layers=LAYERS, layerwise_share=0.5, hint_weight=0.5)
        found = build_method(inputs, "student")
        arguments = (found, BatchDataset(images, inputs.signals.fetch), order, inputs.config)
        try:
            result = fit_stages(*arguments, folder, device=torch.device("cpu"), report=attempt)
        except Stopped:
            continue
    assert result.steps == 8
    return result.model.state_dict()


@pytest.mark.parametrize("stop", [3, 7])
def test_a_stopped_run_ends_with_the_same_bits(tmp_path: Path, stop: int) -> None:
    """Killed in either stage and run again, the student is that of an undisturbed run."""
    whole, rest = train(tmp_path / "whole"), train(tmp_path / "stopped", stop)
    fresh = method_inputs().student.state_dict()
    assert whole.keys() == rest.keys() == fresh.keys()
    assert all(torch.equal(whole[name], rest[name]) for name in whole)


def test_features_that_do_not_fit_are_refused() -> None:
    """All layers whose codes are missing or of another grid are told at once."""
    layers = [{**LAYERS[0], "features": "blocks_2.pca"}, {**LAYERS[1], "features": "stem.pca"}]
    with pytest.raises(ConfigError) as caught:
        method(layers=layers, layerwise_share=0.5)
    assert "'blocks.1' has 8 channels on a grid of [8, 8]" in str(caught.value)
    assert "none for ['a/stem.pca', 'b/stem.pca']" in str(caught.value)


def test_a_row_without_one_of_the_teachers_is_refused() -> None:
    """Where a teacher has labelled its own rows alone, the message says what to set."""
    inputs = method_inputs()
    whole = inputs.signals.fetch

    def fetch(rows: np.ndarray, views: np.ndarray) -> TargetBatch:
        targets = whole(rows, views)
        teacher = targets.soft.teacher.clone()
        teacher[1, -1] = -1
        return dataclasses.replace(targets, soft=dataclasses.replace(targets.soft, teacher=teacher))

    inputs.signals.fetch = fetch
    with pytest.raises(TrainingError, match="routing to 'all'"):
        build_method(inputs, "student")
