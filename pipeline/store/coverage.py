"""Which labels of a teacher's rows exist: from commit records and, if need be, from the shards.

In: `labelled_views` and what follows from it. Left out: which rows a teacher labels
(pipeline.data.routing) and whether stored bytes are sound (verify.py).

A record holds a count of rows, no row numbers. The count settles it where it is that of all rows
the teacher was ever routed to: then each of them has its label. A shard that was written after
some of its rows were retired has fewer; there, and only there, the shard is read.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.store.soft_label_store import SoftLabelStore
from storage_schemas.errors import CorruptLabelError, MissingLabelError

Rows = npt.NDArray[np.int64]


def labelled_views(store: SoftLabelStore, rows: Rows, retired: Rows) -> npt.NDArray[np.bool_]:
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


def _labelled(store: SoftLabelStore, view: int, shard: int, places: Rows) -> npt.NDArray[np.bool_]:
    try:
        ids, _ = store.read_shard(view, shard)
    except (MissingLabelError, CorruptLabelError):
        return np.zeros(len(places), np.bool_)
    labelled: npt.NDArray[np.bool_] = ids[places, 0] != store.schema.ids_fill
    return labelled


def missing_labels(store: SoftLabelStore, rows: Rows, retired: Rows) -> list[tuple[int, int]]:
    """Return the (view, shard) pairs in which labels of these rows are still to be written.

    Args:
        store: May be shorter than the manifest.
        rows: Ascending rows that its teacher labels.
        retired: Rows that it would label if they were still in use.
    """
    found = labelled_views(store, rows, retired)
    return [
        (view, int(shard))
        for view, labelled in enumerate(found)
        for shard in np.unique(rows[~labelled] // store.schema.shard_rows)
    ]
