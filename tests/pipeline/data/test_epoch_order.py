"""The order of an epoch is a pure function of its arguments."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.epoch_order import BatchOrder, Rows, shuffled_windows

ROWS = np.arange(3, 1003, dtype=np.int64)


def shuffled_rows(rows: Rows, **arguments: Any) -> Rows:
    """Return all windows of an epoch, one after the other."""
    return np.concatenate(list(shuffled_windows(rows, **arguments)))


@given(
    seed=st.integers(0, 2**32 - 1),
    epoch=st.integers(0, 10_000),
    shard_rows=st.one_of(st.none(), st.integers(1, 300)),
    window=st.integers(1, 9),
)
def test_every_epoch_visits_every_row_once(seed, epoch, shard_rows, window):
    """Shuffled rows are a permutation of the rows, globally and in windows."""
    order = shuffled_rows(ROWS, seed=seed, epoch=epoch, shard_rows=shard_rows, window_shards=window)
    assert np.array_equal(np.sort(order), ROWS)


def test_windows_hold_few_shards():
    """A windowed shuffle needs no more than its number of shards at a time."""
    order = shuffled_rows(ROWS, seed=1, epoch=2, shard_rows=100, window_shards=2)
    first_window = order[: np.isin(order // 100, order[:1] // 100).nonzero()[0][-1] + 1]
    assert len(np.unique(first_window // 100)) <= 2
    assert not np.array_equal(np.sort(order), order)


def test_epochs_and_seeds_differ():
    """Another epoch or seed is another order; the same one is the same order."""
    first = shuffled_rows(ROWS, seed=0, epoch=0)
    assert np.array_equal(first, shuffled_rows(ROWS, seed=0, epoch=0))
    assert not np.array_equal(first, shuffled_rows(ROWS, seed=0, epoch=1))
    assert not np.array_equal(first, shuffled_rows(ROWS, seed=1, epoch=0))


def test_the_order_is_pinned():
    """A run that was begun with an older release goes on with the samples that are left."""
    windows = shuffled_rows(ROWS, seed=5, epoch=2, shard_rows=100)
    assert windows[:6].tolist() == [530, 326, 581, 546, 570, 342]
    assert shuffled_rows(ROWS, seed=5, epoch=2)[:6].tolist() == [482, 432, 843, 715, 878, 123]


@pytest.mark.parametrize("first_step", [0, 3, 14])
def test_batches_run_across_the_windows(first_step):
    """A batch takes its rows from two windows where one ends in its middle."""
    order = BatchOrder(rows=ROWS, batch_size=64, views=4, seed=3, shard_rows=100)
    whole = shuffled_rows(ROWS, seed=3, epoch=1, shard_rows=100)
    got = np.concatenate([rows for rows, _ in order.batches(1, first_step)])
    assert np.array_equal(got, whole[first_step * 64 : 15 * 64])


def test_all_views_of_a_row_are_visited_in_turn():
    """Over as many epochs as there are views, each row meets each view once."""
    order = BatchOrder(rows=ROWS, batch_size=100, views=4, seed=0)
    seen = {int(row): set() for row in ROWS}
    for epoch in range(4):
        for rows, views in order.batches(epoch):
            for row, view in zip(rows, views, strict=True):
                seen[int(row)].add(int(view))
    assert all(views == {0, 1, 2, 3} for views in seen.values())


def test_views_per_image_draws_different_views_of_one_row():
    """With m views per image, a batch holds m different views of each of its rows."""
    order = BatchOrder(rows=ROWS, batch_size=100, views=4, seed=0, views_per_image=2)
    rows, views = next(order.batches(0))
    assert len(rows) == 100
    assert len(np.unique(rows)) == 50
    assert (views.reshape(50, 2)[:, 0] != views.reshape(50, 2)[:, 1]).all()
    assert order.steps_per_epoch == 20


@pytest.mark.parametrize("first_step", [0, 3, 9])
def test_any_step_can_be_found_again(first_step):
    """Batches from a step on are the tail of the epoch's batches."""
    order = BatchOrder(rows=ROWS, batch_size=100, views=4, seed=5)
    whole = list(order.batches(7))
    tail = list(order.batches(7, first_step))
    assert len(tail) == 10 - first_step
    for (rows, views), (other_rows, other_views) in zip(whole[first_step:], tail, strict=True):
        assert np.array_equal(rows, other_rows)
        assert np.array_equal(views, other_views)


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize(("count", "batch_size", "m"), [(1000, 64, 1), (1000, 64, 2), (7, 64, 1)])
@pytest.mark.parametrize("shard_rows", [None, 100])
def test_ranks_share_each_batch(world_size, count, batch_size, m, shard_rows):
    """What all ranks take of a step, in order, is the batch of one process, in every epoch.

    That holds for windows of shards, for batches that ranks do not divide, and where the rows
    that are left over after the last whole batch differ from epoch to epoch.
    """

    def order(rank=0, world_size=1):
        return BatchOrder(
            rows=ROWS[:count],
            batch_size=batch_size,
            views=4,
            seed=5,
            views_per_image=m,
            rank=rank,
            world_size=world_size,
            shard_rows=shard_rows,
        )

    ranks = [order(rank, world_size) for rank in range(world_size)]
    assert {rank.steps_per_epoch for rank in ranks} == {order().steps_per_epoch}
    for epoch in range(3):
        for whole, *parts in zip(
            order().batches(epoch), *(rank.batches(epoch) for rank in ranks), strict=True
        ):
            for both, of_ranks in zip(whole, zip(*parts, strict=True), strict=True):
                assert np.array_equal(np.concatenate(of_ranks), both)
            sizes = [len(rows) // m for rows, _ in parts]
            assert 1 <= min(sizes) <= max(sizes) <= min(sizes) + 1


def test_more_ranks_than_images_are_refused():
    """A rank without an image is refused, with both numbers."""
    with pytest.raises(ValueError, match="an image for each of 8 ranks, got 7"):
        BatchOrder(rows=ROWS[:7], batch_size=64, views=4, seed=0, world_size=8)


def test_fewer_rows_than_a_batch_still_train():
    """A set smaller than the batch gives one step an epoch with all its rows."""
    order = BatchOrder(rows=ROWS[:7], batch_size=64, views=2, seed=0)
    assert order.steps_per_epoch == 1
    rows, _ = next(order.batches(0))
    assert np.array_equal(np.sort(rows), ROWS[:7])


def test_batch_must_divide():
    """A batch that views per image do not divide is refused with both numbers."""
    with pytest.raises(ValueError, match=r"views_per_image \(3\), got 64"):
        BatchOrder(rows=ROWS, batch_size=64, views=4, seed=0, views_per_image=3)
