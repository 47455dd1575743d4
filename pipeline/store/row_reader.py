"""Rows of any shards and views, with the shards in use held in memory.

In: `ShardCache`, stored shards in memory, `RowIndex`, where a row stands among those that are
held, and `RowReader`, the gather over them. Left out:
decoding (storage_schemas) and the order of rows (pipeline.data.epoch_order).

Values stay as stored in memory: a label takes 48 bytes at K = 16.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.store.shards import Array, ShardFiles
from storage_schemas.errors import MissingLabelError, StoreError

Rows = npt.NDArray[np.int64]


DEFAULT_CACHE_BYTES = 256 * 2**20
LARGEST_TABLE_SPAN = 4  # times the rows; a label takes six times an entry

Place = tuple[Path, int, int]
"""Store, view and shard."""

Entry = tuple[int, tuple[Array, ...]]
"""First row, and the values of each array, of a shard's written span."""


class ShardCache:
    """Decompressed shards of one or more stores, those used last.

    Stores that are read together share one: a window of an epoch holds rows of a few teachers of
    a hundred, and these need all of the memory.

    Args:
        size_bytes: Memory for shards; the one in use is always kept.
    """

    def __init__(self, size_bytes: int = DEFAULT_CACHE_BYTES) -> None:
        self._size_bytes = size_bytes
        self._used = 0
        self._entries: OrderedDict[Place, Entry] = OrderedDict()
        self._lock = threading.Lock()
        self._readers: dict[Place, threading.Lock] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """Carry the size only; it is empty where it arrives."""
        return type(self), (self._size_bytes,)

    def get(self, place: Place) -> Entry | None:
        """Return a shard, or None when it is not in memory."""
        with self._lock:
            if place in self._entries:
                self._entries.move_to_end(place)
            return self._entries.get(place)

    def put(self, place: Place, entry: Entry) -> None:
        """Keep a shard, and drop those that were not used for longest."""
        self.drop(place)
        with self._lock:
            self._entries[place] = entry
            self._used += _entry_bytes(entry)
            while self._used > self._size_bytes and len(self._entries) > 1:
                self._used -= _entry_bytes(self._entries.popitem(last=False)[1])

    def reader(self, place: Place) -> threading.Lock:
        """Return what a thread holds while it reads a shard, so that it is read once."""
        with self._lock:
            return self._readers.setdefault(place, threading.Lock())

    def drop(self, place: Place) -> None:
        """Drop a shard."""
        with self._lock:
            entry = self._entries.pop(place, None)
            self._used -= _entry_bytes(entry) if entry is not None else 0


def _stable_order(values: Rows) -> Rows:
    """Return what sorts integers, equal ones in their order."""
    values = values - values.min()
    # numpy sorts 16 bits by radix, ten times as fast.
    few = values.max() < 2**16
    return np.argsort(values.astype(np.uint16) if few else values, kind="stable")


def _entry_bytes(entry: Entry) -> int:
    return sum(values.nbytes for values in entry[1])


class RowIndex:
    """Where each of some ascending rows stands among them.

    A table of the rows' span, or a binary search where they lie so far apart that the table would
    take more memory than what they are an index of.

    Args:
        rows: (n,) ascending.
    """

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._first = int(rows[0]) if len(rows) else 0
        self._table: npt.NDArray[np.int64] | None = None
        span = int(rows[-1]) - self._first + 1 if len(rows) else 0
        if span <= LARGEST_TABLE_SPAN * len(rows):
            self._table = np.full(span, -1, np.int64)
            self._table[rows - self._first] = np.arange(len(rows))

    def find(self, rows: Rows) -> Rows | None:
        """Return the position of each row, or None when one of them is not there."""
        if self._table is not None:
            place = rows - self._first
            if len(self._table) == 0 or place.min() < 0 or place.max() >= len(self._table):
                return None
            position = self._table.take(place)
            return position if position.min() >= 0 else None
        position = np.searchsorted(self._rows, rows)
        position[position == len(self._rows)] = 0
        return position if np.array_equal(self._rows[position], rows) else None


class RowReader:
    """Gathers stored rows.

    Args:
        files: Of the store.
        cache: Where its shards are kept.
    """

    def __init__(self, files: ShardFiles, cache: ShardCache) -> None:
        self._files = files
        self._cache = cache
        self._arrays = files.schema.stored_arrays
        self._held: tuple[RowIndex, int, tuple[Array, ...]] | None = None
        self._holds_all = True

    def _empty(self, *shape: int) -> tuple[Array, ...]:
        return tuple(array.empty(*shape) for array in self._arrays)

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
        edges = np.searchsorted(rows, np.arange(schema.num_shards + 1) * schema.shard_rows)
        for view in range(schema.num_views):
            wanted = np.ones(len(rows), np.bool_) if views is None else views[:, view]
            for shard in np.flatnonzero(np.diff(edges)).tolist():
                low, high = edges[shard : shard + 2].tolist()
                where = low + np.flatnonzero(wanted[low:high])
                if not len(where):
                    continue
                inside = rows[where] - shard * schema.shard_rows
                for values, found in zip(held, self._files.read(view, shard), strict=True):
                    values[view, where] = found[inside]
            self._refuse_absent(held[0][view, wanted], rows[wanted], np.full(wanted.sum(), view))
        # One axis of (view, row): a gather along one axis is twice as fast as one along two.
        flat = tuple(values.reshape(-1, *values.shape[2:]) for values in held)
        self._held = (RowIndex(rows), len(rows), flat)
        self._holds_all = views is None

    def forget(self, view: int, shard: int) -> None:
        """Drop one shard from memory, since it was written."""
        self._cache.drop((self._files.path, view, shard))
        self._held = None

    def _shard(self, view: int, shard: int, *, wait: bool) -> Entry | None:
        """Return a shard's written span, from memory when it can.

        None if another thread is reading it, unless `wait`.
        """
        place = (self._files.path, view, shard)
        reader = self._cache.reader(place)
        if not reader.acquire(blocking=wait):
            return None
        try:
            return self._cache.get(place) or self._read(place)
        finally:
            reader.release()

    def _read(self, place: Place) -> Entry:
        found = self._files.read(*place[1:])
        # A specialist's rows are contiguous: the rest of the shard is fill, and is not kept.
        written = np.flatnonzero(~self._arrays[0].absent(found[0]))
        low, high = int(written[0]), int(written[-1]) + 1
        if high - low < len(found[0]):
            found = tuple(values[low:high].copy() for values in found)
        entry = (place[2] * self._files.schema.shard_rows + low, found)
        self._cache.put(place, entry)
        return entry

    def fetch(self, rows: Rows, views: Rows) -> tuple[Array, ...]:
        """Return the stored values of (B,) rows and (B,) views: (B, *cell) of each array.

        Shards are read once and kept in memory as far as the cache has room.

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
        if views.min() < 0 or views.max() >= schema.num_views:
            raise StoreError(
                f"{self._files.path}: views must be in 0..{schema.num_views - 1}, got "
                f"{views.min()}..{views.max()}"
            )
        if self._held is not None:
            index, count, held = self._held
            position = index.find(rows)
            if position is not None:
                position += views * count
                gathered = tuple(values.take(position, axis=0) for values in held)
                if not self._holds_all:
                    self._refuse_absent(gathered[0], rows, views)
                return gathered
        places = views * schema.num_shards + rows // schema.shard_rows
        order = _stable_order(places)
        places, by_shard = places[order], rows[order]
        starts = np.flatnonzero(np.diff(places, prepend=-1)).tolist()
        groups = [
            (*divmod(int(places[start]), schema.num_shards), slice(start, stop))
            for start, stop in zip(starts, [*starts[1:], len(rows)], strict=True)
        ]
        # What is in memory comes first, before a shard that is read pushes it out; then what no
        # other thread is reading.
        path = self._files.path
        groups.sort(key=lambda group: self._cache.get((path, *group[:2])) is None)
        found = self._empty(len(rows))
        for wait in (False, True):
            busy = []
            for view, shard, part in groups:
                entry = self._shard(view, shard, wait=wait)
                if entry is None:
                    busy.append((view, shard, part))
                else:
                    self._gather(entry, by_shard[part], tuple(values[part] for values in found))
            groups = busy
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        found = tuple(values.take(back, axis=0) for values in found)
        self._refuse_absent(found[0], rows, views)
        return found

    def _gather(self, entry: Entry, rows: Rows, out: tuple[Array, ...]) -> None:
        """Copy the values of some rows of a shard; those outside its written span stay fill."""
        first, shard_values = entry
        inside = rows - first
        rows_here = len(shard_values[0])
        if inside.min() < 0 or inside.max() >= rows_here:
            here = (inside >= 0) & (inside < rows_here)
            for values, stored in zip(out, shard_values, strict=True):
                values[here] = stored[inside[here]]
            return
        for values, stored in zip(out, shard_values, strict=True):
            # All are inside: `clip` only spares numpy a copy of `out`.
            stored.take(inside, axis=0, out=values, mode="clip")

    def _refuse_absent(self, first: Array, rows: Rows, views: Rows) -> None:
        schema = self._files.schema
        bad = np.flatnonzero(self._arrays[0].absent(first))
        if len(bad):
            raise MissingLabelError(
                f"{self._files.path}: {len(bad)} of {len(rows)} labels were not written, e.g. rows "
                f"{rows[bad[:5]].tolist()}, views {views[bad[:5]].tolist()}; run "
                f"`concentrate label --teacher {schema.teacher}`"
            )
