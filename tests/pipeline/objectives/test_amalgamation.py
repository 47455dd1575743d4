"""Knowledge amalgamation: the contract of its objectives, its stages, and what it refuses."""

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
from pipeline.models.student import Student, build_student
from pipeline.numerics import SoftLabelBatch
from pipeline.objectives import Method, MethodInputs, Objective, build_method
from pipeline.objectives.base import (
    BlockFeatureBatch,
    LabelContext,
    StudentOutput,
    TargetBatch,
    total_loss,
)
from pipeline.objectives.stored_signals import SignalSource
from pipeline.training.fit_stages import fit_stages
from pipeline.training.loss_terms import LossTerms
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


def batch() -> tuple[Tensor, TargetBatch]:
    """Six images and what the teachers say of them."""
    chosen = np.array([3, 0, 17, 23, 8, 8]), np.array([0, 1, 1, 0, 0, 1])
    return images(*chosen), Answers().fetch(*chosen)


def terms_of(
    found: Method, stage: int, targets: TargetBatch, pixels: Tensor
) -> Mapping[str, Tensor]:
    """The loss terms of one stage, of the network before any step."""
    torch.manual_seed(5)
    terms = LossTerms(found.network, found.stages[stage].objective, "float32")
    if isinstance(found.network, Student):
        found.network.tap(terms.objective.taps)
    return terms(pixels, targets)


SETTINGS = {
    "blocks": {"scores": "blocks"},
    "concatenated": {"temperature": 2.0},
    "alike": {"sharpness": 0.0, "tail": "bucket", "vertical_weight": 0.5},
    "hints": {"layers": LAYERS, "hint_weight": 0.7},
    "layerwise": {"layers": LAYERS, "layerwise_share": 0.5},
}


@pytest.mark.parametrize("name", SETTINGS)
class TestAmalgamationContract:
    """What every objective promises, of the first stage of each setting."""

    def test_terms_are_finite_and_all_parameters_learn(self, name: str) -> None:
        """Terms are finite scalars; network and objective get a gradient, the targets do not."""
        found = method(**SETTINGS[name])
        pixels, targets = batch()
        terms = terms_of(found, 0, targets, pixels)
        assert all(term.ndim == 0 and term.isfinite() for term in terms.values())
        total_loss(terms).backward()
        for module in (found.network, found.stages[0].objective):
            assert all(parameter.grad is not None for parameter in module.parameters())
        assert all(value.values.grad is None for value in targets.features.values())

    def test_same_settings_give_the_same_bits(self, name: str) -> None:
        """Put together twice, as for a run and its resumption, a method is the same."""
        first, second = (terms_of(method(**SETTINGS[name]), 0, *batch()[::-1]) for _ in range(2))
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)

    def test_state_round_trip(self, name: str) -> None:
        """A loaded state gives the same terms, the bases included."""
        one, other = method(**SETTINGS[name]), method(**SETTINGS[name])
        for value in other.stages[0].objective.state_dict().values():
            value.zero_()
        other.stages[0].objective.load_state_dict(one.stages[0].objective.state_dict())
        first, second = (terms_of(found, 0, *batch()[::-1]) for found in (one, other))
        assert all(torch.equal(first[key], second[key]) for key in first)

    def test_each_missing_target_is_refused(self, name: str) -> None:
        """Without a target that it needs, an objective says what to do."""
        found = method(**SETTINGS[name])
        pixels, targets = batch()
        for field in found.stages[0].objective.needs:
            lacking = dataclasses.replace(targets, **{field: None})
            with pytest.raises(TrainingError, match=r"needs .*, got none: .*label`"):
                terms_of(found, 0, lacking, pixels)

    def test_no_label_is_needed(self, name: str) -> None:
        """No stage needs labels, and targets have none."""
        found = method(**SETTINGS[name])
        assert batch()[1].labels is None
        for stage in found.stages:
            stage.check_signals(frozenset({"soft", "features"}))


def test_loss_is_differentiable() -> None:
    """The gradient in float64 logits is that of finite differences."""
    objective: Objective = method(temperature=2.0).stages[0].objective
    _, targets = batch()
    soft = targets.soft
    doubles = {"log_probs": soft.log_probs.double(), "log_tail": soft.log_tail.double()}
    targets = dataclasses.replace(targets, soft=dataclasses.replace(soft, **doubles))
    logits = torch.randn(B, len(SPACE), dtype=torch.float64).requires_grad_()

    def loss(values: Tensor) -> Tensor:
        return total_loss(objective(StudentOutput(logits=values, features=values), targets))

    assert torch.autograd.gradcheck(loss, logits)


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
