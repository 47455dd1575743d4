"""A small student of three teachers, of whom two know the same classes; in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.config import StudentConfig
from pipeline.data.loader import Batch, BatchDataset
from pipeline.models.student import build_student
from pipeline.numerics import SoftLabelBatch
from pipeline.objectives import MethodInputs
from pipeline.objectives.base import BlockFeatureBatch, LabelContext, TargetBatch
from pipeline.objectives.stored_signals import SignalSource
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
