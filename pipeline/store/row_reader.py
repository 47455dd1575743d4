"""Rows of any shards and views, with the shards in use held in memory.

In: `RowReader`, a cache of stored shards and the gather over it. Left out: decoding
(storage_schemas) and the order of rows (pipeline.data.epoch_order).

Values stay as stored in memory: a label takes 48 bytes at K = 16.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

import numpy as np
import numpy.typing as npt

from pipeline.store.shards import Array, ShardFiles
from storage_schemas.errors import MissingLabelError, StoreError

Rows = npt.NDArray[np.int64]


class RowReader:
    """Gathers stored rows.

    Args:
        files: Of the store.
        cache_bytes: Memory for decompressed shards; the one in use is always kept.
    """

    def __init__(self, files: ShardFiles, cache_bytes: int) -> None:
        self._files = files
        self._cache_bytes = cache_bytes
        self._cached: OrderedDict[tuple[int, int], tuple[int, tuple[Array, ...]]] = OrderedDict()
        self._lock = threading.Lock()
        self._held: tuple[Rows, tuple[Array, ...]] | None = None
        self._holds_all = True

    def _empty(self, *shape: int) -> tuple[Array, ...]:
        return tuple(array.empty(*shape) for array in self._files.schema.stored_arrays)

    def hold(self, rows: Rows, views: npt.NDArray[np.bool_] | None = None) -> None:
        """Keep the values of these ascending rows in memory, whatever they take.

        A batch is then one gather; without it, one for each shard and view that it touches.

        Args:
            rows: (n,) ascending.
            views: (n, V) bool, which of their views; None: all.

        Raises:
            MissingLabelError: If one of them has not been written.
            CorruptLabelError: If stored bytes disagree with their commit record.
        """
        schema = self._files.schema
        held = self._empty(schema.num_views, len(rows))
        shards = rows // schema.shard_rows
        for view in range(schema.num_views):
            wanted = np.ones(len(rows), np.bool_) if views is None else views[:, view]
            for shard in np.unique(shards[wanted]):
                where = np.flatnonzero((shards == shard) & wanted)
                inside = rows[where] - int(shard) * schema.shard_rows
                for values, found in zip(held, self._files.read(view, int(shard)), strict=True):
                    values[view, where] = found[inside]
            self._refuse_absent(held[0][view, wanted], rows[wanted], np.full(wanted.sum(), view))
        self._held = (rows, held)
        self._holds_all = views is None

    def forget(self, view: int, shard: int) -> None:
        """Drop one shard from memory, since it was written."""
        with self._lock:
            self._cached.pop((view, shard), None)
            self._held = None

    def _shard(self, view: int, shard: int) -> tuple[int, tuple[Array, ...]]:
        """Return (first row, values) of a shard's written span, from memory when it can."""
        with self._lock:
            entry = self._cached.get((view, shard))
            if entry is not None:
                self._cached.move_to_end((view, shard))
                return entry
        found = self._files.read(view, shard)
        # A specialist's rows are contiguous: the rest of the shard is fill, and is not kept.
        schema = self._files.schema
        written = np.flatnonzero(~schema.stored_arrays[0].absent(found[0]))
        low, high = int(written[0]), int(written[-1]) + 1
        kept = tuple(values[low:high].copy() for values in found)
        entry = (shard * schema.shard_rows + low, kept)
        with self._lock:
            self._cached[view, shard] = entry
            used = sum(_bytes(values) for _, values in self._cached.values())
            while used > self._cache_bytes and len(self._cached) > 1:
                _, (_, old) = self._cached.popitem(last=False)
                used -= _bytes(old)
        return entry

    def fetch(self, rows: Rows, views: Rows) -> tuple[Array, ...]:
        """Return the stored values of (B,) rows and (B,) views: (B, *cell) of each array.

        Shards are read once and kept in memory up to `cache_bytes`.

        Raises:
            MissingLabelError: If one of them has not been written; names row and view.
            CorruptLabelError: If stored bytes disagree with their commit record.
            StoreError: If a row or view is not in the store.
        """
        schema = self._files.schema
        if len(rows) == 0:
            return self._empty(0)
        if rows.min() < 0 or rows.max() >= schema.num_rows:
            raise StoreError(
                f"{self._files.path}: rows must be in 0..{schema.num_rows - 1}, got {rows.min()}.."
                f"{rows.max()}; grow the store and label again"
            )
        if self._held is not None:
            held, held_values = self._held
            position = np.searchsorted(held, rows)
            position[position == len(held)] = 0
            if np.array_equal(held[position], rows):
                gathered = tuple(values[views, position] for values in held_values)
                if not self._holds_all:
                    self._refuse_absent(gathered[0], rows, views)
                return gathered
        found = self._empty(len(rows))
        places = views * schema.num_shards + rows // schema.shard_rows
        order = np.argsort(places, kind="stable")
        places = places[order]
        starts = np.flatnonzero(np.diff(places, prepend=-1))
        for start, stop in zip(starts, [*starts[1:], len(rows)], strict=True):
            where = order[start:stop]
            view, shard = divmod(int(places[start]), schema.num_shards)
            first, shard_values = self._shard(view, shard)
            inside = rows[where] - first
            rows_here = len(shard_values[0])
            if inside.min() < 0 or inside.max() >= rows_here:
                here = (inside >= 0) & (inside < rows_here)
                where, inside = where[here], inside[here]
            for values, stored in zip(found, shard_values, strict=True):
                values[where] = stored[inside]
        self._refuse_absent(found[0], rows, views)
        return found

    def _refuse_absent(self, first: Array, rows: Rows, views: Rows) -> None:
        schema = self._files.schema
        bad = np.flatnonzero(schema.stored_arrays[0].absent(first))
        if len(bad):
            raise MissingLabelError(
                f"{self._files.path}: {len(bad)} of {len(rows)} labels were not written, e.g. rows "
                f"{rows[bad[:5]].tolist()}, views {views[bad[:5]].tolist()}; run "
                f"`concentrate label --teacher {schema.teacher}`"
            )


def _bytes(values: tuple[Array, ...]) -> int:
    return sum(one.nbytes for one in values)
