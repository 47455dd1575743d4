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
from collections.abc import Iterator, Sequence
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
        retired: Ascending rows that it would label if they were still in use.
    """
    found = np.zeros((store.schema.num_views, len(rows)), np.bool_)
    for view, _, here, labelled in _shard_coverage(store, rows, retired):
        found[view, here] = labelled
    return found


def _shard_coverage(
    store: Store, rows: Rows, retired: Rows
) -> Iterator[tuple[int, int, slice, npt.NDArray[np.bool_]]]:
    """Yield view, shard, where its rows are in `rows`, and which of them are labelled.

    Shards that hold none of the rows are left out. Beside the rows it takes the memory of one
    shard, whatever the size of the store.
    """
    schema = store.schema
    size, shards = schema.shard_rows, schema.num_shards
    counts = store.commits[:, :, 0]
    last = int(rows[-1]) // size + 1 if len(rows) else 0
    edges = np.searchsorted(rows, np.arange(last + 1) * size)
    # Rows past the end of the store are in no shard that it has.
    ends = np.minimum(np.arange(shards + 1) * size, schema.num_rows)
    known = np.diff(np.searchsorted(rows, ends)) + np.diff(np.searchsorted(retired, ends))
    for shard in np.flatnonzero(np.diff(edges)).tolist():
        low, high = edges[shard : shard + 2].tolist()
        inside = rows[low:high][rows[low:high] < schema.num_rows]
        for view in range(schema.num_views):
            labelled = np.zeros(high - low, np.bool_)
            if shard < shards and counts[view, shard]:
                labelled[: len(inside)] = (
                    True
                    if counts[view, shard] >= known[shard]
                    else _labelled(store, view, shard, inside - shard * size)
                )
            yield view, shard, slice(low, high), labelled


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
        retired: Ascending rows that it would label if they were still in use.
    """
    return sorted(
        (view, shard)
        for view, shard, _, labelled in _shard_coverage(store, rows, retired)
        if not labelled.all()
    )


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
