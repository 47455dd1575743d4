"""Epoch order: which rows, with which views, in which batch, as a pure function.

In: the global shuffle, the windowed shuffle for stores that do not fit in memory, the split over
ranks and the view of each row. Left out: reading anything. The order depends on (rows, shards,
seed, epoch, rank, world size) only, so any step of any epoch can be found again after a kill,
whatever the number of loader workers (DESIGN section 5).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]


def _generator(seed: int, epoch: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, epoch]))


def shuffled_windows(
    rows: Rows, *, seed: int, epoch: int, shard_rows: int | None = None, window_shards: int = 4
) -> Iterator[Rows]:
    """Yield the rows of one epoch in shuffled order, window by window.

    Beside the rows it takes the memory of one window.

    Args:
        rows: (N,) ascending rows.
        seed: Of the run.
        epoch: From 0.
        shard_rows: None: exact global shuffle, in one window. Else shards are shuffled, and rows
            are shuffled inside windows of `window_shards` consecutive shards of that order, so
            that a reader needs no more than that many shards at a time.
        window_shards: Shards in a window.

    Yields:
        Together a permutation of `rows`.
    """
    generator = _generator(seed, epoch)
    if shard_rows is None:
        yield generator.permutation(rows)
        return
    first, last = int(rows[0]) // shard_rows, int(rows[-1]) // shard_rows
    edges = np.unique(np.searchsorted(rows, np.arange(first, last + 2) * shard_rows))
    order = generator.permutation(len(edges) - 1)
    for start in range(0, len(order), window_shards):
        chosen = order[start : start + window_shards].tolist()
        window = np.concatenate([rows[edges[i] : edges[i + 1]] for i in chosen])
        yield generator.permutation(window)


@dataclass(frozen=True, kw_only=True)
class BatchOrder:
    """All batches of a run.

    Attributes:
        rows: (N,) ascending rows to train on.
        batch_size: Images of one step over all ranks.
        views: Stored views per row.
        seed: Of the run.
        views_per_image: Views drawn from one decoded image; an epoch then has that many times
            the steps, each with that many times fewer distinct images.
        first_view: Added to every view number; specialists train beyond the stored views.
        fresh_views: Never repeat a view: view = first_view + epoch. Needs no stored label.
        rank: Of this process.
        world_size: Processes that share each batch: rank r takes a run of neighbouring images of
            it, one more or fewer than another rank where they do not divide evenly.
        shard_rows: See `shuffled_windows`.
        available: (N, views) bool, which stored views each row has, at least one; None: all.
    """

    rows: Rows
    batch_size: int
    views: int
    seed: int
    views_per_image: int = 1
    first_view: int = 0
    fresh_views: bool = False
    rank: int = 0
    world_size: int = 1
    shard_rows: int | None = None
    available: npt.NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        if len(self.rows) == 0:
            raise ValueError("rows must not be empty")
        if self.available is not None:
            if self.available.shape != (len(self.rows), self.views):
                raise ValueError(
                    f"available must be {(len(self.rows), self.views)}, got {self.available.shape}"
                )
            if not self.available.any(axis=1).all():
                raise ValueError("every row must have at least one available view")
        if self.batch_size % self.views_per_image:
            raise ValueError(
                f"batch_size must be a multiple of views_per_image ({self.views_per_image}), "
                f"got {self.batch_size}"
            )
        if self.images_per_batch < self.world_size:
            raise ValueError(
                f"a batch must have an image for each of {self.world_size} ranks, "
                f"got {self.images_per_batch}"
            )

    @property
    def images_per_batch(self) -> int:
        """Distinct images of one step; fewer where there are fewer rows."""
        return min(self.batch_size // self.views_per_image, len(self.rows))

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches of an epoch; the rows that are left over differ from epoch to epoch."""
        return len(self.rows) // self.images_per_batch

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[tuple[Rows, Rows]]:
        """Yield (rows, views), each (batch,) int64, from a step of an epoch on."""
        size = self.images_per_batch
        mine = slice(*(size * (self.rank + end) // self.world_size for end in (0, 1)))
        skip = first_step * size
        rest = self.rows[:0]
        for window in shuffled_windows(
            self.rows, seed=self.seed, epoch=epoch, shard_rows=self.shard_rows
        ):
            rows = np.concatenate([rest, window[skip:]]) if len(rest) or skip else window
            skip = max(skip - len(window), 0)
            whole = len(rows) - len(rows) % size
            for start in range(0, whole, size):
                yield self._with_views(rows[start : start + size][mine], epoch)
            rest = rows[whole:]

    def _with_views(self, rows: Rows, epoch: int) -> tuple[Rows, Rows]:
        if self.fresh_views:
            return rows, np.full(len(rows), self.first_view + epoch, np.int64)
        m = self.views_per_image
        draws = np.arange(m, dtype=np.int64)
        turn = epoch * m + draws[None, :] + rows[:, None]
        if self.available is None:
            views = turn % self.views
        else:
            there = self.available[np.searchsorted(self.rows, rows)]
            # The available views of each row first, ascending.
            in_turn = np.argsort(~there, axis=1, kind="stable")
            views = np.take_along_axis(in_turn, turn % there.sum(axis=1, keepdims=True), axis=1)
        return np.repeat(rows, m), self.first_view + views.reshape(-1)
