"""The curriculum: who is easy, how the pool grows, and that the steps stay those of the control."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from pipeline.config import Curriculum, KnowledgeConcentration, SoftLabels, StudentConfig
from pipeline.data.epoch_order import BatchOrder
from pipeline.models.student import build_student
from pipeline.numerics import SoftLabelBatch
from pipeline.objectives import MethodInputs, build_method
from pipeline.objectives.base import LabelContext, TargetBatch
from pipeline.objectives.curriculum import pool_shares, row_difficulty
from pipeline.objectives.stored_signals import SignalSource
from storage_schemas.errors import TrainingError
from storage_schemas.label_space import LabelSpace

N, C, VIEWS = 60, 3, 2
ROWS = np.arange(2, 2 + N, dtype=np.int64)
SURE = np.random.default_rng(0).permutation(N) / N * 0.6 + 0.38  # of its own class, by row
CONTEXT = LabelContext(
    num_classes=C, vertical_of=torch.zeros(C, dtype=torch.int64), supports=(torch.arange(C),)
)


class Sure(SignalSource):
    """One teacher that is the surer of a row the higher its `SURE`, in view 1 a little less."""

    provides = frozenset({"soft", "labels"})

    def fetch(self, rows: np.ndarray, views: np.ndarray) -> TargetBatch:
        """Soft labels whose first id is the hard label."""
        labels = torch.from_numpy(rows % C)
        sure = torch.from_numpy(SURE[rows - 2] - 0.01 * views)
        return TargetBatch(
            labels=labels,
            soft=SoftLabelBatch(
                ids=labels.reshape(1, -1, 1),
                log_probs=sure.log().reshape(1, -1, 1),
                log_tail=(1 - sure).log().reshape(1, -1),
                teacher=torch.zeros(1, len(rows), dtype=torch.int64),
            ),
        )


@dataclass(frozen=True)
class Unlabelled(SignalSource):
    """A source without soft labels."""

    provides = frozenset({"labels"})

    def fetch(self, rows: np.ndarray, views: np.ndarray) -> TargetBatch:
        """Nothing."""
        return TargetBatch()


def plain(**settings: object) -> BatchOrder:
    """The order of a plain epoch: six steps of ten."""
    return BatchOrder(rows=ROWS, batch_size=10, views=VIEWS, seed=4, **settings)


def ordered(signals: SignalSource | None = None, **curriculum: object) -> BatchOrder:
    """The order of a student of six epochs with this curriculum."""
    config = StudentConfig(
        builder="pipeline.models.backbones:glyph_resnet",
        builder_args={"width": 8},
        input={"size": 32, "channels": 1},
        objective=SoftLabels(name="soft_labels"),
        epochs=6,
        curriculum=curriculum,
    )
    inputs = MethodInputs(
        config=config,
        student=build_student(config, LabelSpace(classes=("a/0", "a/1", "a/2"))),
        context=CONTEXT,
        signals=signals or Sure(),
        rows=ROWS,
        views=VIEWS,
    )
    (stage,) = build_method(inputs, "student").stages
    return stage.order(plain())


def seen(order: BatchOrder, epoch: int) -> np.ndarray:
    """Rows of an epoch, in order."""
    return np.concatenate([rows for rows, _ in order.batches(epoch)])


@pytest.mark.parametrize("difficulty", ["true_class", "entropy"])
def test_the_easy_come_first(difficulty: str) -> None:
    """The pools are the surest 40, 70 and 100 % of the rows, two epochs each."""
    order = ordered(difficulty=difficulty)
    by_sureness = ROWS[np.argsort(-SURE, kind="stable")]
    for epoch, size in enumerate([24, 24, 42, 42, 60, 60]):
        assert set(seen(order, epoch)) <= set(by_sureness[:size])
        assert len(set(seen(order, epoch))) >= size // 10 * 10
    hard = ordered(difficulty=difficulty, first="hard")
    assert set(seen(hard, 0)) <= set(by_sureness[-24:])


def test_a_random_pool_is_neither() -> None:
    """The random control has pools of the same sizes, whatever the teachers say."""
    order = ordered(first="random")
    pool = set(seen(order, 0)) | set(seen(order, 1))
    assert len(pool) <= 24
    assert 0.5 < np.mean([SURE[row - 2] for row in pool]) < 0.85
    assert pool <= set(seen(order, 2)) | set(seen(order, 3))


def test_steps_and_late_epochs_are_those_of_the_control() -> None:
    """Every epoch has as many whole batches as a plain one; once the pool is full it is one."""
    order, control = ordered(), plain()
    assert order.steps_per_epoch == control.steps_per_epoch
    for epoch in range(6):
        batches = list(order.batches(epoch))
        assert [len(rows) for rows, _ in batches] == [10] * 6
        assert all(len(set(rows)) == 10 for rows, _ in batches)
    assert np.array_equal(seen(order, 5), seen(control, 5))
    assert not np.array_equal(seen(order, 0)[:20], seen(order, 0)[20:40])  # shuffled anew


def test_any_step_can_be_found_again_on_any_rank() -> None:
    """A run that goes on in the middle of a pass, or with two ranks, has the same batches."""
    order = ordered()
    whole, tail = list(order.batches(0)), list(order.batches(0, 3))
    for first, second in zip(whole[3:], tail, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    settings = {"places": order.places, "pool_shares": order.pool_shares, "world_size": 2}
    halves = [list(plain(rank=rank, **settings).batches(0)) for rank in (0, 1)]
    for (rows, _), (left, _), (right, _) in zip(whole, *halves, strict=True):
        assert np.array_equal(rows, np.concatenate([left, right]))


def test_difficulty_is_the_mean_over_the_views_there_are() -> None:
    """A row whose second view is not labelled counts by its first."""
    available = np.ones((N, VIEWS), np.bool_)
    available[7, 1] = False
    found = row_difficulty(Curriculum(), plain(available=available), Sure(), CONTEXT)
    assert found[7] == pytest.approx(1 - SURE[7])
    assert found[8] == pytest.approx(1 - SURE[8] + 0.005)


def test_shares_grow_to_all() -> None:
    """Phases take equal epochs as far as these divide; one phase is no curriculum."""
    assert pool_shares(Curriculum(start=0.5, phases=2), 5) == (0.5, 0.5, 0.5, 1.0, 1.0)
    assert pool_shares(Curriculum(phases=1), 3) == (1.0, 1.0, 1.0)


def test_what_it_needs_is_said() -> None:
    """Without stored labels nothing tells the easy rows; nor do settings that read none."""
    with pytest.raises(TrainingError, match="run `concentrate label`"):
        ordered(Unlabelled())
    with pytest.raises(ValueError, match="reads soft labels, which tell the easy rows"):
        StudentConfig(objective={"name": "hard_labels"}, curriculum={})
    with pytest.raises(ValueError, match="phases must be at most epochs"):
        StudentConfig(
            objective=KnowledgeConcentration(name="knowledge_concentration"),
            epochs=2,
            curriculum={},
        )
