"""Rows of any shards and views, with the shards in use held in memory.

In: `ShardCache`, stored shards in memory, and `RowReader`, the gather over them. Left out: rows
that stay in memory (held_rows.py), decoding (storage_schemas) and the order of rows
(pipeline.data.epoch_order).

Values stay as stored in memory: a label takes 48 bytes at K = 16.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.store.asked_rows import check_rows, check_views, refuse_absent
from pipeline.store.shards import Array, ShardFiles

Rows = npt.NDArray[np.int64]


DEFAULT_CACHE_BYTES = 256 * 2**20

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

    def _empty(self, *shape: int) -> tuple[Array, ...]:
        return tuple(array.empty(*shape) for array in self._arrays)

    def forget(self, view: int, shard: int) -> None:
        """Drop one shard from memory, since it was written."""
        self._cache.drop((self._files.path, view, shard))

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
        check_rows(self._files, rows)
        check_views(self._files, views)
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
        refuse_absent(self._files, found[0], rows, views)
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
