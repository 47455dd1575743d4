"""Rows kept in memory for as long as a run lasts, each batch one gather.

In: `HeldRows`, their values, and `RowIndex`, where a row stands among them. Left out: what is
kept of a row, which the stores say, and shards that are in memory only for now (row_reader.py).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from pipeline.store.asked_rows import check_views, missing_rows, refuse_absent
from pipeline.store.shards import Array, ShardFiles

Rows = npt.NDArray[np.int64]
Views = npt.NDArray[np.bool_]

LARGEST_TABLE_SPAN = 4  # times the rows; a label takes ten times an entry


class RowIndex:
    """Where each of some ascending rows stands among them.

    A subtraction where they have no gaps, a table of their span where it is small beside what
    they are an index of, and a binary search elsewhere.

    Args:
        rows: (n,) ascending.
    """

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._first = int(rows[0]) if len(rows) else 0
        self._span = int(rows[-1]) - self._first + 1 if len(rows) else 0
        self._table: npt.NDArray[np.int64] | None = None
        if len(rows) < self._span <= LARGEST_TABLE_SPAN * len(rows):
            self._table = np.full(self._span, -1, np.int64)
            self._table[rows - self._first] = np.arange(len(rows))

    def find(self, rows: Rows) -> Rows | None:
        """Return the position of each of (B,) rows, B > 0, or None when one is not there."""
        place = rows - self._first
        if place.min() < 0 or place.max() >= self._span:
            return None
        if self._span == len(self._rows):
            return place
        if self._table is not None:
            position = self._table.take(place)
            return position if position.min() >= 0 else None
        position = np.searchsorted(self._rows, rows)
        return position if np.array_equal(self._rows[position], rows) else None


class HeldRows:
    """Values of some rows in all of their views.

    Args:
        files: Of the store that they are read from, once.
        rows: (n,) ascending.
        views: (n, V) bool, which of their views; None: all. Others are refused.
        kept: From the stored values of (B,) rows, (B, *cell) each, to what is kept of them.

    Raises:
        MissingLabelError: If one of them has not been written.
        CorruptLabelError: If stored bytes disagree with their commit record.
    """

    def __init__(
        self,
        files: ShardFiles,
        rows: Rows,
        views: Views | None,
        kept: Callable[[tuple[Array, ...]], tuple[Array, ...]],
    ) -> None:
        schema = files.schema
        self._files, self._index, self._count = files, RowIndex(rows), len(rows)
        empty = kept(tuple(array.empty(0) for array in schema.stored_arrays))
        held = [np.zeros((schema.num_views, len(rows), *v.shape[1:]), v.dtype) for v in empty]
        edges = np.searchsorted(rows, np.arange(schema.num_shards + 1) * schema.shard_rows)
        for view in range(schema.num_views):
            wanted = np.ones(len(rows), np.bool_) if views is None else views[:, view]
            for shard in np.flatnonzero(np.diff(edges)).tolist():
                low, high = edges[shard : shard + 2].tolist()
                where = low + np.flatnonzero(wanted[low:high])
                if not len(where):
                    continue
                inside = rows[where] - shard * schema.shard_rows
                stored = tuple(values[inside] for values in files.read(view, shard))
                refuse_absent(files, stored[0], rows[where], np.full(len(where), view))
                for values, found in zip(held, kept(stored), strict=True):
                    values[view, where] = found
        # One axis of (view, row): a gather along one axis is twice as fast as one along two.
        self._values = tuple(values.reshape(-1, *values.shape[2:]) for values in held)
        self._there = None if views is None else views.T.reshape(-1)

    def gather(self, rows: Rows, views: Rows) -> tuple[Array, ...] | None:
        """Return what is kept of (B,) rows and (B,) views, or None when a row is not held.

        Raises:
            MissingLabelError: If a view of a row is not held.
            StoreError: If a view is not in the store.
        """
        check_views(self._files, views)
        position = self._index.find(rows) if len(rows) else rows
        if position is None:
            return None
        if self._files.schema.num_views > 1:
            position = position + views * self._count
        if self._there is not None:
            absent = ~self._there.take(position)
            if absent.any():
                raise missing_rows(self._files, rows[absent], views[absent], of=len(rows))
        return tuple(values.take(position, axis=0) for values in self._values)
