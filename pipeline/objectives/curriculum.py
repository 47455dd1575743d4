"""A curriculum over the rows of a run: first those that the teachers find easy, then all.

Zhao, Sun, Dong, Dong, Li, "Knowledge Distillation via Instance-level Sequence Learning", 2021,
arXiv 2106.10885. Only the abstract was open to us: samples are ranked from easy to hard, and the
student meets them in that sequence. Pool sizes and phases here are a reconstruction.

In: the difficulty of every row, from its stored soft labels alone, and a batch order whose pool
grows over `phases` equal parts of the run from `start` to all rows. Every epoch keeps its number
of steps, by going over a small pool more than once, and the run is one stage: optimizer and
learning rate are those of the control, which differs in nothing but the order. Further controls:
the hard rows first, or random ones.

Left out: the paper's snapshots of the student, which rank the rows anew in each phase. Teachers
that were run once have already said how sure they are, and ranking costs one pass over the labels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from pipeline.config import Curriculum
from pipeline.data.epoch_order import BatchOrder
from pipeline.numerics import SupportTable
from pipeline.numerics.difficulty import sparse_entropy, true_class_probability
from pipeline.objectives.base import LabelContext
from pipeline.objectives.method import MethodInputs
from pipeline.objectives.stored_signals import SignalSource
from pipeline.objectives.targets import required_labels, required_soft_labels
from storage_schemas.errors import TrainingError

_BLOCK_ROWS = 4096


def curriculum_order(inputs: MethodInputs) -> Callable[[BatchOrder], BatchOrder]:
    """Return what turns a plain order into that of the student's curriculum, if it has one.

    Raises:
        TrainingError: If the signals do not tell how difficult a row is.
    """
    config, epochs = inputs.config.curriculum, inputs.config.epochs
    if config is None:
        return lambda order: order
    needs = {"soft", "labels"} if config.difficulty == "true_class" else {"soft"}
    missing = sorted(needs - inputs.signals.provides)
    if missing and config.first != "random":
        raise TrainingError(
            f"curriculum by {config.difficulty} needs {sorted(needs)}, the signal source provides "
            f"{sorted(inputs.signals.provides)}: {missing} missing; run `concentrate label`, or "
            "set student.curriculum.difficulty to entropy where images have no labels"
        )

    def ordered(order: BatchOrder) -> BatchOrder:
        return replace(
            order,
            places=_places(config, order, inputs.signals, inputs.context),
            pool_shares=pool_shares(config, epochs),
        )

    return ordered


def pool_shares(config: Curriculum, epochs: int) -> tuple[float, ...]:
    """Return the share of the rows that each epoch draws from; the last phase has all."""
    steps = max(config.phases - 1, 1)
    phase = [epoch * config.phases // epochs for epoch in range(epochs)]
    if config.phases == 1:
        return (1.0,) * epochs
    return tuple(config.start + (1 - config.start) * p / steps for p in phase)


def _places(
    config: Curriculum, order: BatchOrder, signals: SignalSource, context: LabelContext
) -> npt.NDArray[np.int64]:
    """Return (N,) places of an order's rows; rows of equal difficulty are drawn by the seed."""
    count = len(order.rows)
    drawn = np.random.Generator(np.random.Philox(key=[order.seed, 2**63])).permutation(count)
    if config.first == "random":
        return drawn
    difficulty = row_difficulty(config, order, signals, context)
    key = difficulty if config.first == "easy" else -difficulty
    places = np.empty(count, np.int64)
    places[np.lexsort((drawn, key))] = np.arange(count)
    return places


def row_difficulty(
    config: Curriculum, order: BatchOrder, signals: SignalSource, context: LabelContext
) -> npt.NDArray[np.float64]:
    """Return (N,) how difficult the teachers find each row, the mean over its stored views.

    Args:
        config: Says by what.
        order: Its rows and their available views.
        signals: Must provide soft labels, and hard labels for `true_class`.
        context: Supports of the teachers.
    """
    supports = SupportTable.from_supports(context.supports, context.num_classes)
    total = np.zeros(len(order.rows))
    counts = np.zeros(len(order.rows), np.int64)
    for view in range(order.views):
        there = np.arange(len(order.rows))
        if order.available is not None:
            there = there[order.available[:, view]]
        for start in range(0, len(there), _BLOCK_ROWS):
            block = there[start : start + _BLOCK_ROWS]
            targets = signals.fetch(order.rows[block], np.full(len(block), view, np.int64))
            soft = required_soft_labels(targets, "curriculum")
            if config.difficulty == "entropy":
                found = sparse_entropy(soft, supports)
            else:
                labels = required_labels(targets, "curriculum")
                found = 1 - true_class_probability(soft, labels, supports)
            total[block] += found.double().numpy()
            counts[block] += 1
    return total / counts
