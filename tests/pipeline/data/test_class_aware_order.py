"""Batches in which several images of a class meet are still a pure function of the step."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.config import StudentConfig
from pipeline.data.epoch_order import BatchOrder
from storage_schemas.errors import ConfigError

ROWS = np.arange(5, 1005, dtype=np.int64)
CLASSES = np.random.default_rng(0).integers(-1, 60, len(ROWS))


def order(samples: int = 4, batch_size: int = 40, **settings: object) -> BatchOrder:
    """A class-aware order over a thousand rows of sixty classes, some without one."""
    return BatchOrder(
        rows=ROWS,
        batch_size=batch_size,
        views=2,
        seed=3,
        classes=CLASSES,
        samples_per_class=samples,
        **settings,
    )


@pytest.mark.parametrize("shard_rows", [None, 100])
@pytest.mark.parametrize("samples", [1, 2, 4, 8])
def test_every_row_comes_once_an_epoch(samples: int, shard_rows: int | None) -> None:
    """Batches of an epoch hold each row once, in an order of its own in each epoch."""
    made = order(samples, shard_rows=shard_rows)
    epochs = [np.concatenate([rows for rows, _ in made.batches(epoch)]) for epoch in (0, 0, 1)]
    for seen in epochs:
        assert np.array_equal(np.sort(seen), ROWS)
    assert np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(epochs[0], epochs[2])


def test_images_of_a_class_meet() -> None:
    """Whole groups of a class are never cut, and few rows are without one of their class."""
    made = order(4)
    alone = 0
    for rows, _ in made.batches(0):
        own = CLASSES[rows - ROWS[0]].reshape(-1, 4)
        alone += sum(len(np.unique(group)) > 1 for group in own)
    counts = np.unique(CLASSES, return_counts=True)[1]
    assert alone <= -(-(counts % 4).sum() // 4)  # only what classes had left over
    assert order(1).steps_per_epoch == made.steps_per_epoch == 25


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_share_each_batch_by_groups(world_size: int) -> None:
    """What all ranks take is the batch of one process, and no group is split between ranks."""
    ranks = [order(4, rank=rank, world_size=world_size) for rank in range(world_size)]
    for whole, *parts in zip(
        order(4).batches(1), *(rank.batches(1) for rank in ranks), strict=True
    ):
        assert np.array_equal(np.concatenate([rows for rows, _ in parts]), whole[0])
        assert all(len(rows) % 4 == 0 and len(rows) for rows, _ in parts)


def test_any_step_can_be_found_again() -> None:
    """Batches from a step on are the tail of the epoch's batches."""
    whole, tail = list(order().batches(2)), list(order().batches(2, 11))
    for (rows, _), (other, _) in zip(whole[11:], tail, strict=True):
        assert np.array_equal(rows, other)


def test_what_does_not_fit_is_refused() -> None:
    """A batch that groups do not divide is refused, and groups without classes."""
    with pytest.raises((ValueError, ConfigError), match=r"samples_per_class must divide .*256"):
        StudentConfig(samples_per_class=3)
    with pytest.raises(ValueError, match="devices must be at most the classes of a batch"):
        StudentConfig(samples_per_class=128, devices=3)
    with pytest.raises(ValueError, match="the class of every row"):
        BatchOrder(rows=ROWS, batch_size=8, views=1, seed=0, samples_per_class=2)
