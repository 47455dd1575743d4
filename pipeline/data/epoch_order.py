"""Epoch order: which rows, with which views, in which batch, as a pure function.

In: the global shuffle, the windowed shuffle for stores that do not fit in memory, the split over
ranks and the view of each row. Left out: reading anything. The order depends on (rows, shards,
seed, epoch, rank, world size) only, so any step of any epoch can be found again after a kill,
whatever the number of loader workers (DESIGN section 5).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]


def _generator(seed: int, epoch: int, turn: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, epoch + (turn << 32)]))


def shuffled_rows(
    rows: Rows, *, seed: int, epoch: int, shard_rows: int | None = None, window_shards: int = 4
) -> Rows:
    """Return the rows of one epoch in shuffled order.

    Args:
        rows: (N,) ascending rows.
        seed: Of the run.
        epoch: From 0.
        shard_rows: None: exact global shuffle. Else shards are shuffled, and rows are shuffled
            inside windows of `window_shards` consecutive shards of that order, so that a reader
            needs no more than that many shards at a time.
        window_shards: Shards in a window.

    Returns:
        (N,) a permutation of `rows`.
    """
    return np.concatenate(
        _shuffled_windows(rows, _generator(seed, epoch), shard_rows, window_shards)
    )


def _shuffled_windows(
    rows: Rows, generator: np.random.Generator, shard_rows: int | None, window_shards: int = 4
) -> list[Rows]:
    if shard_rows is None:
        return [generator.permutation(rows)]
    first = np.flatnonzero(np.diff(rows // shard_rows, prepend=-1))
    shards = np.split(rows, first[1:])
    order = generator.permutation(len(shards))
    windows = [
        np.concatenate([shards[i] for i in order[start : start + window_shards]])
        for start in range(0, len(order), window_shards)
    ]
    return [generator.permutation(window) for window in windows]


def _by_class(rows: Rows, classes: Rows, samples: int, generator: np.random.Generator) -> Rows:
    """Return shuffled rows so that `samples` of one class follow one another.

    Groups of `samples` rows are shuffled. The rows that a class has left over are put together,
    class by class, to further groups, among which only the last may be smaller: so groups stay
    whole in batches that they divide.
    """
    order = np.argsort(classes, kind="stable")
    counts = np.unique(classes, return_counts=True)[1]
    place = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    whole = place < np.repeat(counts // samples * samples, counts)
    full, rest = rows[order[whole]].reshape(-1, samples), rows[order[~whole]]
    rest_classes = classes[order[~whole]]
    mixed = generator.permutation(int(classes.max()) + 2)[rest_classes]
    rest = rest[np.argsort(mixed, kind="stable")]
    end = len(rest) // samples * samples
    groups = np.concatenate([full, rest[:end].reshape(-1, samples)])
    return np.concatenate([generator.permutation(groups).reshape(-1), rest[end:]])


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
        shard_rows: See `shuffled_rows`.
        available: (N, views) bool, which stored views each row has, at least one; None: all.
        classes: (N,) class of each row, -1: none; read where `samples_per_class` is above 1.
        samples_per_class: Rows of one class that follow one another, as far as classes have so
            many. Each row still comes once an epoch.
        places: (N,) of each row, 0 for the first to be trained on; None: all rows at once.
        pool_shares: Share of the rows, by place, that each epoch draws from; all rows after the
            last. An epoch keeps its steps: it goes over a small pool several times.
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
    classes: Rows | None = None
    samples_per_class: int = 1
    places: Rows | None = None
    pool_shares: tuple[float, ...] = ()

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
        if self.samples_per_class > 1 and (
            self.classes is None or len(self.classes) != len(self.rows)
        ):
            raise ValueError("samples_per_class needs the class of every row")
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
        pool = self._pool(epoch)
        size = self.images_per_batch
        mine = slice(*(self._first_image(self.rank + end) for end in (0, 1)))
        order, turn_of_order = np.empty(0, np.int64), -1
        for step in range(first_step, self.steps_per_epoch):
            turn, place = divmod(step, pool.steps_per_epoch)
            if turn != turn_of_order:
                order, turn_of_order = pool._order(epoch, turn), turn
            rows = order[place * size : (place + 1) * size]
            yield self._with_views(rows[mine], epoch + turn)

    def _pool(self, epoch: int) -> BatchOrder:
        """Return the order over the rows that an epoch draws from, at least one batch of them."""
        if self.places is None or epoch >= len(self.pool_shares):
            return self
        size = max(self.images_per_batch, round(self.pool_shares[epoch] * len(self.rows)))
        inside = self.places < size
        return replace(
            self,
            rows=self.rows[inside],
            available=None if self.available is None else self.available[inside],
            classes=None if self.classes is None else self.classes[inside],
            places=None,
        )

    def _order(self, epoch: int, turn: int) -> Rows:
        generator = _generator(self.seed, epoch, turn)
        windows = _shuffled_windows(self.rows, generator, self.shard_rows)
        if self.samples_per_class > 1:
            assert self.classes is not None
            classes = [self.classes[np.searchsorted(self.rows, window)] for window in windows]
            windows = [
                _by_class(window, own, self.samples_per_class, generator)
                for window, own in zip(windows, classes, strict=True)
            ]
        return np.concatenate(windows)

    def _first_image(self, rank: int) -> int:
        """Return where a rank's part of a batch begins; groups of one class stay together."""
        size, group = self.images_per_batch, self.samples_per_class
        if rank == self.world_size:
            return size
        groups = max(size // group, 1)
        return min(group, size) * (groups * rank // self.world_size)

    def _with_views(self, rows: Rows, epoch: int) -> tuple[Rows, Rows]:
        if self.fresh_views:
            return rows, np.full(len(rows), self.first_view + epoch, np.int64)
        m = self.views_per_image
        draws = np.arange(m, dtype=np.int64)
        turn = epoch * m + draws[None, :] + rows[:, None]
        if self._views_in_turn is None:
            views = turn % self.views
        else:
            in_turn, counts = self._views_in_turn
            at = np.searchsorted(self.rows, rows)[:, None]
            views = in_turn[at, turn % counts[at]]
        return np.repeat(rows, m), self.first_view + views.reshape(-1)

    @functools.cached_property
    def _views_in_turn(self) -> tuple[Rows, Rows] | None:
        """(N, views) each row's available views first, ascending, and (N,) how many they are."""
        if self.available is None:
            return None
        return np.argsort(~self.available, axis=1, kind="stable"), self.available.sum(axis=1)
