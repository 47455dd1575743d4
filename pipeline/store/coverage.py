"""Which labels of a teacher's rows exist: from commit records and, if need be, from the shards.

In: `labelled_views`, what is missing by it, and the pairs that several teachers have in common.
Left out: which rows a teacher labels (pipeline.data.routing) and whether stored bytes are sound
(verify.py).

A record holds a count of rows, no row numbers. The count settles it where it is that of all rows
the teacher was ever routed to: then each of them has its label. A shard that was written after
some of its rows were retired has fewer; there, and only there, the shard is read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.store.block_feature_store import BlockFeatureStore
from pipeline.store.soft_label_store import SoftLabelStore
from storage_schemas.errors import CorruptLabelError, MissingLabelError

Rows = npt.NDArray[np.int64]
Store = SoftLabelStore | BlockFeatureStore


def labelled_views(store: Store, rows: Rows, retired: Rows) -> npt.NDArray[np.bool_]:
    """Return which labels exist: (views, n) bool for n rows.

    A shard that cannot be read has none: it is labelled again.

    Args:
        store: May be shorter than the manifest.
        rows: (n,) ascending rows that its teacher labels.
        retired: Rows that it would label if they were still in use.
    """
    schema = store.schema
    size, shards = schema.shard_rows, schema.num_shards
    found = np.zeros((schema.num_views, len(rows)), np.bool_)
    known = np.concatenate([rows, retired])
    known_counts = np.bincount(known[known < schema.num_rows] // size, minlength=shards)
    counts = store.commits[:, :, 0]
    inside = rows[rows < schema.num_rows]
    for shard in np.unique(inside // size).tolist():
        low, high = np.searchsorted(inside, [shard * size, (shard + 1) * size])
        for view in np.flatnonzero(counts[:, shard]).tolist():
            found[view, low:high] = (
                True
                if counts[view, shard] >= known_counts[shard]
                else _labelled(store, view, shard, inside[low:high] - shard * size)
            )
    return found


def _labelled(store: Store, view: int, shard: int, places: Rows) -> npt.NDArray[np.bool_]:
    try:
        first = store.read_shard(view, shard)[0]
    except (MissingLabelError, CorruptLabelError):
        return np.zeros(len(places), np.bool_)
    return ~store.schema.stored_arrays[0].absent(first[places])


def shards_without(
    found: npt.NDArray[np.bool_], rows: Rows, shard_rows: int
) -> list[tuple[int, int]]:
    """Return the (view, shard) pairs in which a label is missing.

    Args:
        found: From `labelled_views`.
        rows: The same rows.
        shard_rows: Rows of a shard.
    """
    return [
        (view, int(shard))
        for view, labelled in enumerate(found)
        for shard in np.unique(rows[~labelled] // shard_rows)
    ]


def missing_labels(store: Store, rows: Rows, retired: Rows) -> list[tuple[int, int]]:
    """Return the (view, shard) pairs in which labels of these rows are still to be written.

    Args:
        store: May be shorter than the manifest.
        rows: Ascending rows that its teacher labels.
        retired: Rows that it would label if they were still in use.
    """
    return shards_without(labelled_views(store, rows, retired), rows, store.schema.shard_rows)


@dataclass(frozen=True, kw_only=True, eq=False)
class AvailablePairs:
    """The (row, view) pairs that can be trained on, where that is not all of them.

    Attributes:
        rows: (n,) ascending, each with at least one view.
        views: (n, V) bool.
    """

    rows: Rows
    views: npt.NDArray[np.bool_]

    @property
    def digest(self) -> str:
        """The sha256 hex digest of the pairs."""
        packed = np.packbits(self.views, axis=1)
        return hashlib.sha256(self.rows.astype("<i8").tobytes() + packed.tobytes()).hexdigest()


def common_pairs(
    rows: Rows, labelled: Sequence[tuple[Rows, npt.NDArray[np.bool_]]]
) -> AvailablePairs | None:
    """Return the pairs that all teachers of a row have labelled; None when that is every pair.

    Args:
        rows: (n,) ascending rows in use.
        labelled: Of each teacher, its ascending rows and (views, its rows) bool.
    """
    if all(found.all() for _, found in labelled):
        return None
    views = np.ones((len(rows), len(labelled[0][1])), np.bool_)
    routed = np.zeros(len(rows), np.bool_)
    for own, found in labelled:
        at = np.searchsorted(rows, own)
        views[at] &= found.T
        routed[at] = True
    views[~routed] = False
    used = views.any(axis=1)
    return AvailablePairs(rows=rows[used], views=views[used])
