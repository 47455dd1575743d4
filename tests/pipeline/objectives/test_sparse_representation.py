"""Sparse Representation Matching: its losses, its stages, what it refuses."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.config import SparseRepresentation, StudentConfig, load_project
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
)
from pipeline.objectives.stored_signals import SignalSource
from pipeline.training.fit_stages import fit_stages
from storage_schemas.errors import ConfigError, TrainingError
from storage_schemas.label_space import LabelSpace

SHIPPED = Path(__file__).parents[3] / "flows" / "configs" / "sparse_representation.yaml"
SPACE = LabelSpace(classes=("a/0", "a/1", "a/2", "b/0", "b/1"))
ROWS, VIEWS, B = 24, 2, 6
SHAPES = {
    "wide/blocks_1.codewords": (1, 8, 8),
    "wide/blocks_1.codeword_means": (7, 1, 1),
    "wide/blocks_0.codewords": (1, 16, 16),
    "wide/blocks_0.codeword_means": (5, 1, 1),
    "deep/blocks_1.codewords": (1, 8, 8),
    "deep/blocks_1.codeword_means": (9, 1, 1),
}
LAYERS = [
    {"student": "blocks.1", "feature": "blocks_1.codewords"},
    {"student": "blocks.0", "feature": "wide/blocks_0.codewords"},
]


class Codewords(SignalSource):
    """What two teachers say of 24 rows in two views; `deep` has not seen every third."""

    provides = frozenset({"soft", "features", "labels"})

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self._logits = 2 * torch.randn(ROWS, VIEWS, len(SPACE), generator=generator)
        self._values = {}
        for name, shape in SHAPES.items():
            drawn = torch.rand(ROWS, VIEWS, *shape, generator=generator)
            codewords = SHAPES[f"{name.split('.')[0]}.codeword_means"][0]
            whole = (drawn * codewords).floor()
            self._values[name] = whole if name.endswith(".codewords") else 0.3 * drawn

    def fetch(self, rows: np.ndarray, views: np.ndarray) -> TargetBatch:
        """The targets of some rows and views."""
        at = torch.from_numpy(rows), torch.from_numpy(views)
        top = self._logits[at].log_softmax(dim=1).topk(3, dim=1)
        soft = SoftLabelBatch(
            ids=top.indices[None],
            log_probs=top.values[None],
            log_tail=(1 - top.values.exp().sum(dim=1)).log()[None],
            teacher=torch.zeros(1, len(rows), dtype=torch.int64),
        )
        features = {}
        for name, values in self._values.items():
            present = at[0] % 3 != 0 if name.startswith("deep") else torch.ones_like(at[0]) > 0
            found = values[at].clone()
            found[~present] = 0
            features[name] = BlockFeatureBatch(values=found, present=present)
        return TargetBatch(labels=at[0] % 5, soft=soft, features=features, rows=at[0])


def method_inputs(*, epochs: int = 4, shapes=SHAPES, **objective: object) -> MethodInputs:
    """A small student of both teachers."""
    settings = {"name": "sparse_representation", "layers": LAYERS, **objective}
    config = StudentConfig(
        builder="pipeline.models.backbones:glyph_resnet",
        builder_args={"width": 8, "dropout": 0.1},
        input={"size": 32, "channels": 1},
        objective=settings,
        epochs=epochs,
        log_every_steps=1,
    )
    torch.manual_seed(0)
    return MethodInputs(
        config=config,
        student=build_student(config, SPACE),
        context=LabelContext(
            num_classes=len(SPACE),
            vertical_of=torch.from_numpy(SPACE.vertical_of.astype(np.int64)),
            supports=(torch.arange(5), torch.arange(5)),
            teachers=("wide", "deep"),
            features=shapes,
        ),
        signals=Codewords(),
        rows=np.arange(ROWS, dtype=np.int64),
        views=VIEWS,
    )


def method(**settings: object) -> Method:
    """The method of these settings."""
    return build_method(method_inputs(**settings), "student")


def objective(**settings: object) -> Objective:
    """The objective of its first stage."""
    return method(**settings).stages[0].objective


def targets() -> TargetBatch:
    """Those of the first rows."""
    return Codewords().fetch(np.arange(B), np.arange(B) % VIEWS)


def student_output() -> StudentOutput:
    """Two blocks with gradients."""
    generator = torch.Generator().manual_seed(1)
    blocks = {
        name: torch.randn(B, *shape, generator=generator).requires_grad_()
        for name, shape in {"blocks.1": (8, 8, 8), "blocks.0": (3, 16, 16)}.items()
    }
    return StudentOutput(logits=torch.zeros(B, 5), features=torch.zeros(B, 2), blocks=blocks)


def test_losses_are_those_of_the_paper() -> None:
    """Cross-entropy of places and of the image, a mean over rows of a teacher, summed over blocks.

    Rows that a teacher has not seen do not count.
    """
    found, wanted, output = (
        objective(place_weight=2.0, image_weight=3.0),
        targets(),
        student_output(),
    )
    terms = found(output, wanted)
    heads = iter(found.scores)
    place = image = 0.0
    for block, names in {
        "blocks.1": ["wide/blocks_1", "deep/blocks_1"],
        "blocks.0": ["wide/blocks_0"],
    }.items():
        sums, count = [0.0, 0.0], 0
        for name in names:
            head = next(heads)
            weight = head.codewords.weight[:, :, 0, 0].double()
            scores = (
                torch.einsum("bdhw,md->bmhw", output.blocks[block].double(), weight) + head.bias
            )
            present = wanted.features[f"{name}.codewords"].present
            ids = wanted.features[f"{name}.codewords"].values[:, 0].long()
            means = wanted.features[f"{name}.codeword_means"].values[:, :, 0, 0].double()
            for row in present.nonzero().flatten():
                sums[0] += functional.cross_entropy(scores[row].flatten(1).T, ids[row].flatten())
                p = scores[row].sigmoid().mean((1, 2))
                sums[1] += functional.binary_cross_entropy(p, means[row])
            count += int(present.sum())
        place, image = place + sums[0] / count, image + sums[1] / count
    torch.testing.assert_close(terms["place_loss"].double(), 2 * place, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(terms["image_loss"].double(), 3 * image, rtol=1e-5, atol=1e-5)


def test_sigmoids_as_logits_can_hardly_fall() -> None:
    """Under the released form a student that knows every place is still far from a loss of 0."""
    ids = torch.randint(5, (B, 16, 16), generator=torch.Generator().manual_seed(0))
    known = 40.0 * (functional.one_hot(ids, 5).movedim(3, 1) - 0.5)
    wanted = targets()
    wanted.features["wide/blocks_0.codewords"].values[:, 0] = ids.float()
    losses = {}
    for form in ("logits", "sigmoids"):
        found = objective(layers=LAYERS[1:], place_scores=form)
        found.scores[0].codewords = torch.nn.Identity()
        output = dataclasses.replace(student_output(), blocks={"blocks.0": known})
        losses[form] = found(output, wanted)["place_loss"].item()
    assert losses["logits"] < 1e-6
    assert losses["sigmoids"] == pytest.approx(np.log(np.e + 4) - 1, abs=1e-5)


def test_shuffled_targets_are_those_of_another_image() -> None:
    """Each row gets what the row half a batch away has, and what that teacher has not seen."""
    wanted = targets()
    rolled = {
        name: BlockFeatureBatch(values=one.values.roll(3, 0), present=one.present.roll(3))
        for name, one in wanted.features.items()
    }
    expected = objective()(student_output(), dataclasses.replace(wanted, features=rolled))
    found = objective(targets="shuffled")(student_output(), wanted)
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_stages_share_the_epochs_and_train_what_they_reach() -> None:
    """The head and the blocks behind the tapped ones wait for the second stage; then all learns."""
    first, second = method(epochs=5, layers=LAYERS[1:]).stages
    assert (first.name, first.epochs) == ("codewords", 2)
    assert (second.name, second.epochs) == ("distillation", 3)
    reached = {name.rsplit(".", 1)[0] for name in first.trains}
    assert "backbone.blocks.0.conv2" in reached
    assert not any("blocks.1" in name or "head" in name for name in reached)
    assert second.trains == ("",)


def test_a_student_goes_through_both_stages(tmp_path) -> None:
    """Every weight moves, the losses fall, and what comes out is a plain student."""
    settings = method(epochs=6, codeword_share=0.5)
    before = {name: one.clone() for name, one in settings.network.state_dict().items()}
    generator = torch.Generator().manual_seed(1)
    every = torch.randn(ROWS, VIEWS, 1, 32, 32, generator=generator)
    logged: list[dict[str, float]] = []

    def images(rows: np.ndarray, views: np.ndarray) -> Tensor:
        return every[torch.from_numpy(rows), torch.from_numpy(views)]

    result = fit_stages(
        settings,
        BatchDataset(images, Codewords().fetch),
        BatchOrder(rows=np.arange(ROWS), batch_size=8, views=VIEWS, seed=0),
        method_inputs().config.model_copy(update={"batch_size": 8}),
        tmp_path,
        device=torch.device("cpu"),
        report=lambda step, total, values: logged.append(dict(values)),
    )
    assert isinstance(result.model, Student)
    assert result.steps == 6 * 3
    assert not torch.equal(
        before["backbone.blocks.0.conv1.weight"],
        result.model.state_dict()["backbone.blocks.0.conv1.weight"],
    )
    assert logged[8]["place_loss"] < logged[0]["place_loss"]
    assert {"kd_loss", "task_loss"} <= set(logged[-1])
    assert result.model(every[:2, 0]).blocks == {}


def test_what_does_not_fit_is_refused() -> None:
    """Other grids, features that are no codewords, one epoch; all layers at once."""
    small = SHAPES | {"deep/blocks_1.codewords": (1, 4, 4)}
    wrong = [LAYERS[0], {"student": "blocks.0", "feature": "blocks_9.codewords"}]
    with pytest.raises(ConfigError) as caught:
        method(shapes=small, layers=wrong)
    first, second = caught.value.problems
    assert "is on a grid of (8, 8), the codewords deep/blocks_1.codewords on (4, 4)" in first
    assert "blocks_9.codewords" in second
    assert "reduce: codewords" in second
    with pytest.raises(ConfigError, match="several"):
        method(layers=[LAYERS[0], LAYERS[0]])
    with pytest.raises(ConfigError, match=r"blocks\.7"):
        method(layers=[{"student": "blocks.7", "feature": "blocks_1.codewords"}])
    with pytest.raises(ConfigError, match="at least 2 epochs, got 1"):
        method(epochs=1)
    with pytest.raises(TrainingError, match=r"list what to keep of each teacher"):
        method().stages[0].check_signals(frozenset({"soft", "labels"}))
    with pytest.raises(TrainingError, match=r"needs block features, got none"):
        objective()(student_output(), TargetBatch())


def test_features_are_checked_with_the_project() -> None:
    """A layer that no teacher has codewords of is found before anything runs."""
    settings = SparseRepresentation(name="sparse_representation", layers=LAYERS)
    stored = {"wide": ["blocks_1.codewords", "blocks_1.codeword_means", "blocks_0.pool"]}
    (problem,) = settings.problems_with(stored)
    assert "feature must be one of ['blocks_1.codewords'], got 'wide/blocks_0.codewords'" in problem
    layers = "student.objective.layers=[{student: blocks.0, feature: blocks_0.codewords}]"
    with pytest.raises(ConfigError, match=r"objective\.layers: feature must be one of"):
        load_project(SHIPPED, [layers])
    with pytest.raises(ConfigError, match="above 0"):
        load_project(
            SHIPPED, ["student.objective.place_weight=0", "student.objective.image_weight=0"]
        )
