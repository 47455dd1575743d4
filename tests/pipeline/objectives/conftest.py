"""A small student of three teachers in memory, of whom two know the same classes, and its cases."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.config import StudentConfig
from pipeline.data.loader import Batch, BatchDataset
from pipeline.models.student import Student, build_student
from pipeline.numerics import SoftLabelBatch
from pipeline.objectives import MethodInputs, Stage, build_method
from pipeline.objectives.base import (
    BlockFeatureBatch,
    LabelContext,
    StudentOutput,
    TargetBatch,
)
from pipeline.objectives.stored_signals import SignalSource
from pipeline.training.loss_terms import LossTerms
from storage_schemas.label_space import LabelSpace
from storage_schemas.manifest import UNLABELLED

SPACE = LabelSpace(classes=("a/0", "a/1", "a/2", "b/0", "b/1"))
SUPPORTS = {"a": torch.arange(3), "b": torch.arange(3, 5), "twin": torch.arange(3)}
FEATURES = {
    "blocks_1.channel_mean": (1, 8, 8),
    "blocks_1.pca": (6, 8, 8),
    "blocks_2.pca": (9, 4, 4),
    "blocks_1.codewords": (1, 8, 8),
    "blocks_1.codeword_means": (7, 1, 1),
}
ROWS, VIEWS, K = 24, 3, 2
LABELS = np.arange(ROWS, dtype=np.int64) % len(SPACE)
LABELS[5] = UNLABELLED
LAYERS = [
    {
        "block": "blocks.1",
        "features": "blocks_1.pca",
        "into": ["blocks.2.conv1", "blocks.2.shortcut.1"],
    },
    {"block": "blocks.2", "features": "blocks_2.pca", "into": ["head.fc"]},
]
CODEWORDS = {"student": "blocks.1", "feature": "blocks_1.codewords"}
BLOCK = {"student": "blocks.1", "feature": "blocks_1.channel_mean"}
# Name of an objective and what is told apart, then its settings (`auxiliary`: the student's).
CASES: dict[str, dict[str, Any]] = {
    "hard_labels": {},
    "hard_labels smoothed": {"label_smoothing": 0.1},
    "hard_labels and a term": {"auxiliary": [{"name": "online_subclass", "bank": 30}]},
    "multi_label": {},
    "soft_labels": {},
    "soft_labels T=2": {"temperature": 2.0, "tail": "bucket", "hard_weight": 0.5},
    "knowledge_concentration": {},
    "knowledge_concentration T=2": {
        "temperature": 2.0,
        "tail": "drop",
        "vertical_weight": 0.3,
        "hard_weight": 0.5,
    },
    "knowledge_concentration sigmoid": {"form": "sigmoid", "hard_weight": 0.5},
    "meal": {},
    "meal mean": {"teacher": "mean", "teachers": ["a", "twin"], "temperature": 2.0},
    "meal blocks": {"blocks": [BLOCK]},
    "meal adversarial": {"blocks": [BLOCK], "adversarial": {"classes": 2}},
    "balanced": {},
    "balanced later": {"balanced_from": 0.5, "hard_weight": 0.0},
    "online_subclass": {},
    "online_subclass of logits": {"representation": "logits", "partner": "random"},
    "online_subclass probability": {"form": "probability", "neighbours": 2, "bank": 30},
    "amalgamation": {"temperature": 2.0},
    "amalgamation by blocks": {"scores": "blocks"},
    "amalgamation hints": {"layers": LAYERS, "hint_weight": 0.7, "tail": "bucket"},
    "amalgamation layerwise": {"layers": LAYERS, "layerwise_share": 0.5, "hint_weight": 0.7},
    "compact": {"budget": {"default": 0.5, "blocks.1": 0.3}},
    "compact soft labels alone": {"soft_weight": 1.0, "per_block": False},
    "compact hard labels alone": {"soft_weight": 0.0, "resource": "parameters"},
    "peer_collaborative": {"stage": "blocks.2"},
    "sparse_representation": {"layers": [CODEWORDS]},
    "sparse_representation sigmoids": {
        "layers": [CODEWORDS],
        "place_scores": "sigmoids",
        "targets": "shuffled",
    },
}


def of_all_rows(seed: int, *shape: int) -> torch.Tensor:
    """Noise for every row and view."""
    return torch.randn(ROWS, VIEWS, *shape, generator=torch.Generator().manual_seed(seed))


class Answers(SignalSource):
    """What the stores say of 24 rows in three views.

    Args:
        hidden: There are no hard labels, and every teacher answers every row; else a teacher
            answers the rows of its classes, and row 5 has neither label nor teacher.
    """

    def __init__(self, hidden: bool) -> None:
        self.provides = frozenset({"soft", "features"} | (set() if hidden else {"labels"}))
        self._hidden = hidden
        self._logits = [
            2 * of_all_rows(seed, len(support)) for seed, support in enumerate(SUPPORTS.values())
        ]
        self._features = {
            f"{teacher}/{name}": of_all_rows(seed, *shape)
            for seed, teacher in enumerate(SUPPORTS, start=3)
            for name, shape in FEATURES.items()
        }
        for name, values in self._features.items():
            if name.endswith(".codewords"):
                values.copy_(values.sigmoid().mul(7).floor())
            if name.endswith(".codeword_means"):
                values.sigmoid_()

    def fetch(self, rows: np.ndarray, views: np.ndarray) -> TargetBatch:
        """The targets of some rows and views."""
        at, labels = (torch.from_numpy(rows), torch.from_numpy(views)), LABELS[rows]
        tops = [logits[at].log_softmax(dim=1).topk(K, dim=1) for logits in self._logits]
        answered = torch.stack(
            [torch.from_numpy(self._hidden | np.isin(labels, s)) for s in SUPPORTS.values()]
        )
        ids = torch.stack([s[t.indices] for s, t in zip(SUPPORTS.values(), tops, strict=True)])
        log_probs = torch.stack([top.values for top in tops])
        tail = 1 - log_probs.exp().sum(dim=2)
        absent = ~answered
        soft = SoftLabelBatch(
            ids=ids.masked_fill(absent.unsqueeze(2), -1),
            log_probs=log_probs.masked_fill(absent.unsqueeze(2), -torch.inf),
            log_tail=torch.where(tail > 1e-6, tail, 0.0).log().masked_fill(absent, -torch.inf),
            teacher=torch.where(answered, torch.arange(len(SUPPORTS))[:, None], -1),
        )
        present = dict(zip(SUPPORTS, answered, strict=True))
        features = {
            name: BlockFeatureBatch(
                values=values[at] * present[name.partition("/")[0]][:, None, None, None],
                present=present[name.partition("/")[0]],
            )
            for name, values in self._features.items()
        }
        return TargetBatch(
            labels=None if self._hidden else torch.from_numpy(labels),
            soft=soft,
            features=features,
            rows=at[0],
        )


@pytest.fixture(scope="session")
def small_student() -> Callable[..., MethodInputs]:
    """From settings of the student and a seed of its weights to what a method is made of."""

    def inputs(settings: dict[str, Any], seed: int) -> MethodInputs:
        config = StudentConfig.model_validate(
            {
                "builder": "pipeline.models.backbones:glyph_resnet",
                "builder_args": {"width": 8, "dropout": 0.1},
                "input": {"size": 32, "channels": 1},
                "epochs": 4,
                "batch_size": 12,
                "views_per_image": VIEWS,
                **settings,
            }
        )
        torch.manual_seed(seed)
        student = build_student(config, SPACE)
        return MethodInputs(
            config=config,
            student=student,
            context=LabelContext(
                num_classes=len(SPACE),
                vertical_of=torch.from_numpy(SPACE.vertical_of.astype(np.int64)),
                supports=tuple(SUPPORTS.values()),
                teachers=tuple(SUPPORTS),
                class_counts=torch.from_numpy(np.bincount(LABELS[LABELS >= 0])),
                total_steps=6,  # what comes in half way is there after a few steps
                feature_dim=student.feature_dim,
                features={f"{t}/{name}": s for t in SUPPORTS for name, s in FEATURES.items()},
            ),
            signals=Answers(config.objective.hides_labels),
            rows=np.arange(ROWS, dtype=np.int64),
            views=VIEWS,
        )

    return inputs


@pytest.fixture(scope="session")
def batch_of() -> Callable[[SignalSource], Batch]:
    """Four rows in three views each: of both verticals, two of one class, one without a label."""

    def batch(signals: SignalSource) -> Batch:
        images = of_all_rows(9, 1, 32, 32)
        dataset = BatchDataset(lambda rows, views: images[rows, views], signals.fetch)
        return dataset[np.repeat([5, 3, 11, 6], VIEWS), np.tile(np.arange(VIEWS), 4)]

    return batch


class Case:
    """One case, put together as often as it is asked for, and its batch."""

    def __init__(
        self,
        name: str,
        small_student: Callable[..., MethodInputs],
        batch_of: Callable[..., Batch],
    ) -> None:
        objective = {"name": name.partition(" ")[0], **CASES[name]}
        student = {"auxiliary": objective.pop("auxiliary", ()), "objective": objective}
        self.name, self.auxiliary = name, bool(student["auxiliary"])
        self._inputs = lambda seed: small_student(student, seed)
        inputs = self._inputs(0)
        self.settings, self.provides = inputs.config.objective, inputs.signals.provides
        self.batch = batch_of(inputs.signals)

    def stages(self, seed: int = 0) -> Iterator[tuple[Stage, nn.Module]]:
        """Each stage and the network that it trains: none took a step, all that froze is frozen."""
        method = build_method(self._inputs(seed), "student")
        network = method.network
        for stage in method.stages:
            if isinstance(network, Student):
                network.tap(stage.objective.taps)
            for name, parameter in network.named_parameters():
                parameter.requires_grad_(name.startswith(stage.trains))
            yield stage, network.train()
            network = stage.finish(network)

    def terms(
        self, stage: Stage, network: nn.Module, targets: TargetBatch | None = None
    ) -> Mapping[str, Tensor]:
        """The terms of the batch, with the same dropout each time."""
        torch.manual_seed(5)
        terms = LossTerms(network, stage.objective, "float32")
        return terms(self.batch.images, self.batch.targets if targets is None else targets)

    def output(self, stage: Stage, network: nn.Module) -> StudentOutput:
        """What the network says of the batch, without a gradient."""
        forced = stage.objective.forced(self.batch.targets)
        with torch.no_grad():
            found: StudentOutput = network(self.batch.images, *([forced] if forced else []))
        return found


@pytest.fixture(scope="session")
def case_names() -> list[str]:
    """Name of an objective and what is told apart, of every case."""
    return list(CASES)


@pytest.fixture(params=CASES, scope="module")
def case(request, small_student, batch_of) -> Case:
    """Every case in turn; each test puts stages of its own together."""
    return Case(request.param, small_student, batch_of)
