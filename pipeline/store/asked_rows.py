"""What is refused of the rows and views that a reader asks for.

In: those that a store has no room for, and those that nobody wrote. Left out: bytes that are
damaged (shards.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.store.shards import ShardFiles
from storage_schemas.errors import MissingLabelError, StoreError

Rows = npt.NDArray[np.int64]


def check_rows(files: ShardFiles, rows: Rows) -> None:
    """Refuse rows that a store has no room for.

    Raises:
        StoreError: Names the smallest and the largest.
    """
    if len(rows) and (rows.min() < 0 or rows.max() >= files.schema.num_rows):
        raise StoreError(
            f"{files.path}: rows must be in 0..{files.schema.num_rows - 1}, got {rows.min()}.."
            f"{rows.max()}; grow the store and label again"
        )


def check_views(files: ShardFiles, views: Rows) -> None:
    """Refuse views that a store has not.

    Raises:
        StoreError: Names the smallest and the largest.
    """
    last = files.schema.num_views - 1
    if len(views) and (views.min() < 0 or views.max() > last):
        raise StoreError(
            f"{files.path}: views must be in 0..{last}, got {views.min()}..{views.max()}"
        )


def refuse_absent(files: ShardFiles, first: npt.NDArray[Any], rows: Rows, views: Rows) -> None:
    """Refuse rows that were not written, as the stored values of the first array tell.

    Raises:
        MissingLabelError: Names row and view.
    """
    bad = np.flatnonzero(files.schema.stored_arrays[0].absent(first))
    if len(bad):
        raise missing_rows(files, rows[bad], views[bad], of=len(rows))


def missing_rows(files: ShardFiles, rows: Rows, views: Rows, *, of: int) -> MissingLabelError:
    """Return the error about rows and views that were not written, of so many asked for."""
    return MissingLabelError(
        f"{files.path}: {len(rows)} of {of} labels were not written, e.g. rows "
        f"{rows[:5].tolist()}, views {views[:5].tolist()}; run "
        f"`concentrate label --teacher {files.schema.teacher}`"
    )
