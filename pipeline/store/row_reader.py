"""Rows of any shards and views, with the shards in use held in memory.

In: `RowReader`, a cache of quantised shards and the gather over it. Left out: decoding
(storage_schemas) and the order of rows (pipeline.data.epoch_order).

Labels stay quantised in memory: 48 bytes a row at K = 16.
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
        self._cached: OrderedDict[tuple[int, int], tuple[int, Array, Array]] = OrderedDict()
        self._lock = threading.Lock()
        self._held: tuple[Rows, Array, Array] | None = None
        self._holds_all = True

    def hold(self, rows: Rows, views: npt.NDArray[np.bool_] | None = None) -> None:
        """Keep the labels of these ascending rows in memory, whatever they take.

        A batch is then one gather; without it, one for each shard and view that it touches.

        Args:
            rows: (n,) ascending.
            views: (n, V) bool, which of their views; None: all.

        Raises:
            MissingLabelError: If one of them has not been labelled.
            CorruptLabelError: If stored bytes disagree with their commit record.
        """
        schema = self._files.schema
        ids, gaps = schema.empty(schema.num_views, len(rows))
        shards = rows // schema.shard_rows
        for view in range(schema.num_views):
            wanted = np.ones(len(rows), np.bool_) if views is None else views[:, view]
            for shard in np.unique(shards[wanted]):
                where = np.flatnonzero((shards == shard) & wanted)
                shard_ids, shard_gaps = self._files.read(view, int(shard))
                inside = rows[where] - int(shard) * schema.shard_rows
                ids[view, where], gaps[view, where] = shard_ids[inside], shard_gaps[inside]
            self._refuse_absent(ids[view, wanted], rows[wanted], np.full(wanted.sum(), view))
        self._held = (rows, ids, gaps)
        self._holds_all = views is None

    def forget(self, view: int, shard: int) -> None:
        """Drop one shard from memory, since it was written."""
        with self._lock:
            self._cached.pop((view, shard), None)
            self._held = None

    def _shard(self, view: int, shard: int) -> tuple[int, Array, Array]:
        """Return (first row, ids, gaps) of a shard's labelled span, from memory when it can."""
        with self._lock:
            entry = self._cached.get((view, shard))
            if entry is not None:
                self._cached.move_to_end((view, shard))
                return entry
        ids, gaps = self._files.read(view, shard)
        # A specialist's rows are contiguous: the rest of the shard is fill, and is not kept.
        labelled = np.flatnonzero(ids[:, 0] != self._files.schema.ids_fill)
        low, high = int(labelled[0]), int(labelled[-1]) + 1
        entry = (
            shard * self._files.schema.shard_rows + low,
            ids[low:high].copy(),
            gaps[low:high].copy(),
        )
        with self._lock:
            self._cached[view, shard] = entry
            used = sum(i.nbytes + g.nbytes for _, i, g in self._cached.values())
            while used > self._cache_bytes and len(self._cached) > 1:
                _, (_, old_ids, old_gaps) = self._cached.popitem(last=False)
                used -= old_ids.nbytes + old_gaps.nbytes
        return entry

    def fetch(self, rows: Rows, views: Rows) -> tuple[Array, Array]:
        """Return ids (B, K) and gaps (B, columns) as stored, of (B,) rows and (B,) views.

        Shards are read once and kept in memory up to `cache_bytes`.

        Raises:
            MissingLabelError: If one of them has not been labelled; names row and view.
            CorruptLabelError: If stored bytes disagree with their commit record.
            StoreError: If a row or view is not in the store.
        """
        schema = self._files.schema
        ids, gaps = schema.empty(len(rows))
        if len(rows) == 0:
            return ids, gaps
        if rows.min() < 0 or rows.max() >= schema.num_rows:
            raise StoreError(
                f"{self._files.path}: rows must be in 0..{schema.num_rows - 1}, got {rows.min()}.."
                f"{rows.max()}; grow the store and label again"
            )
        if self._held is not None:
            held, held_ids, held_gaps = self._held
            position = np.searchsorted(held, rows)
            position[position == len(held)] = 0
            if np.array_equal(held[position], rows):
                ids, gaps = held_ids[views, position], held_gaps[views, position]
                if not self._holds_all:
                    self._refuse_absent(ids, rows, views)
                return ids, gaps
        places = views * schema.num_shards + rows // schema.shard_rows
        order = np.argsort(places, kind="stable")
        places = places[order]
        starts = np.flatnonzero(np.diff(places, prepend=-1))
        for start, stop in zip(starts, [*starts[1:], len(rows)], strict=True):
            where = order[start:stop]
            view, shard = divmod(int(places[start]), schema.num_shards)
            first, shard_ids, shard_gaps = self._shard(view, shard)
            inside = rows[where] - first
            if inside.min() < 0 or inside.max() >= len(shard_ids):
                here = (inside >= 0) & (inside < len(shard_ids))
                where, inside = where[here], inside[here]
            ids[where], gaps[where] = shard_ids[inside], shard_gaps[inside]
        self._refuse_absent(ids, rows, views)
        return ids, gaps

    def _refuse_absent(self, ids: Array, rows: Rows, views: Rows) -> None:
        schema = self._files.schema
        bad = np.flatnonzero(ids[:, 0] == schema.ids_fill)
        if len(bad):
            raise MissingLabelError(
                f"{self._files.path}: {len(bad)} of {len(rows)} labels were not written, e.g. rows "
                f"{rows[bad[:5]].tolist()}, views {views[bad[:5]].tolist()}; run "
                f"`concentrate label --teacher {schema.teacher}`"
            )
