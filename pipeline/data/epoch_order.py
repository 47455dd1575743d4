"""Epoch order: which rows, with which views, in which batch, as a pure function.

In: the global shuffle, the windowed shuffle for stores that do not fit in memory, the split over
ranks and the view of each row. Left out: reading anything. The order depends on (rows, shards,
seed, epoch, rank, world size) only, so any step of any epoch can be found again after a kill,
whatever the number of loader workers (DESIGN section 5).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]
BATCHES_AT_ONCE = 32


def _generator(seed: int, epoch: int, turn: int = 0, use: int = 0) -> np.random.Generator:
    counter = np.array([0, 0, 0, use], np.uint64)
    return np.random.Generator(np.random.Philox(counter=counter, key=[seed, epoch + (turn << 32)]))


def shuffled_windows(
    rows: Rows,
    *,
    seed: int,
    epoch: int,
    turn: int = 0,
    shard_rows: int | None = None,
    window_shards: int = 4,
) -> Iterator[Rows]:
    """Yield the rows of one epoch in shuffled order, window by window.

    Beside the rows it takes the memory of one window.

    Args:
        rows: (N,) ascending rows.
        seed: Of the run.
        epoch: From 0.
        turn: Of the rows in the epoch, where it goes over them several times.
        shard_rows: None: exact global shuffle, in one window. Else shards are shuffled, and rows
            are shuffled inside windows of `window_shards` consecutive shards of that order, so
            that a reader needs no more than that many shards at a time.
        window_shards: Shards in a window.

    Yields:
        Together a permutation of `rows`.
    """
    generator = _generator(seed, epoch, turn)
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
        shard_rows: See `shuffled_windows`.
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
        mine = slice(*(self._first_image(self.rank + end) for end in (0, 1)))
        step = first_step
        while step < self.steps_per_epoch:
            turn, place = divmod(step, pool.steps_per_epoch)
            for images in pool._turn(epoch, turn, place):
                images = images[: self.steps_per_epoch - step, mine]
                yield from zip(*self._with_views(images, epoch + turn), strict=True)
                step += len(images)
                if step == self.steps_per_epoch:
                    break

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

    def _turn(self, epoch: int, turn: int, first_step: int) -> Iterator[Rows]:
        """Yield the images of all whole batches of one pass over the rows, from a step on.

        They come some batches at a time, (n, images per batch): what is done to each then costs
        little beside the shuffle.
        """
        size = self.images_per_batch
        skip = first_step * size
        rest = self.rows[:0]
        for window in self._windows(epoch, turn):
            rows = np.concatenate([rest, window[skip:]]) if len(rest) or skip else window
            skip = max(skip - len(window), 0)
            whole = len(rows) - len(rows) % size
            batches = rows[:whole].reshape(-1, size)
            for start in range(0, len(batches), BATCHES_AT_ONCE):
                yield batches[start : start + BATCHES_AT_ONCE]
            rest = rows[whole:]

    def _windows(self, epoch: int, turn: int) -> Iterator[Rows]:
        generator = _generator(self.seed, epoch, turn, use=1)
        for window in shuffled_windows(
            self.rows, seed=self.seed, epoch=epoch, turn=turn, shard_rows=self.shard_rows
        ):
            if self.samples_per_class == 1:
                yield window
                continue
            assert self.classes is not None
            classes = self.classes[np.searchsorted(self.rows, window)]
            yield _by_class(window, classes, self.samples_per_class, generator)

    def _first_image(self, rank: int) -> int:
        """Return where a rank's part of a batch begins; groups of one class stay together."""
        size, group = self.images_per_batch, self.samples_per_class
        if rank == self.world_size:
            return size
        groups = max(size // group, 1)
        return min(group, size) * (groups * rank // self.world_size)

    def _with_views(self, images: Rows, epoch: int) -> tuple[Rows, Rows]:
        """Return rows and views (n, batch) of the images (n, images per batch) of n batches."""
        if self.fresh_views:
            return images, np.full(images.shape, self.first_view + epoch, np.int64)
        m = self.views_per_image
        rows = images.reshape(-1)
        shape = (len(images), images.shape[1] * m)
        if self.views == 1:
            return np.repeat(rows, m).reshape(shape), np.full(shape, self.first_view, np.int64)
        draws = np.arange(m, dtype=np.int64)
        turn = epoch * m + draws[None, :] + rows[:, None]
        if self.available is None:
            views = turn % self.views
        else:
            there = self.available[np.searchsorted(self.rows, rows)]
            # The available views of each row first, ascending.
            in_turn = np.argsort(~there, axis=1, kind="stable")
            views = np.take_along_axis(in_turn, turn % there.sum(axis=1, keepdims=True), axis=1)
        return np.repeat(rows, m).reshape(shape), (self.first_view + views).reshape(shape)
