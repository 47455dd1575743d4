"""What a store of block features holds and how healthy it is, in one pass over its shards.

In: the summary and the pass. Left out: labels (inspect.py) and printing (flows).
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.locations import folder_bytes, location
from pipeline.store.block_feature_store import BlockFeatureStore, open_block_features
from pipeline.store.reduction import Progress
from pipeline.store.verify import verify_store
from storage_schemas.block_features import RANGE, decode
from storage_schemas.errors import ConcentrateError


@dataclass(frozen=True, kw_only=True)
class FeatureArraySummary:
    """One array of a store.

    Attributes:
        name: Of the array.
        block: Of the teacher.
        reduce: Name of the reduction.
        shape: (channels, height, width) of a row in a view.
        dtype: As stored.
        fitted: Names of the constants that were fitted for it.
        bytes: Size of its files.
        bytes_per_row: The same for each written (row, view) pair; 0 when there is none.
        mean: Of all written values; None when there is none.
        deviation: Their standard deviation.
    """

    name: str
    block: str
    reduce: str
    shape: tuple[int, int, int]
    dtype: str
    fitted: tuple[str, ...]
    bytes: int
    bytes_per_row: float
    mean: float | None
    deviation: float | None


@dataclass(frozen=True, kw_only=True)
class FeatureSummary:
    """What a store holds.

    Attributes:
        path: Directory of the store.
        teacher: Name of the teacher.
        fingerprint: Name of the store.
        split: Of the manifest.
        num_rows: N.
        num_views: V.
        fit_rows: Rows that constants were fitted on.
        rows_per_view: Rows of committed shards, per view.
        coverage: The same as shares of the store's rows.
        shards: Shards per view.
        shards_committed: Committed shards, all views.
        size_bytes: Size of all files.
        arrays: In the order of the store.
        problems: What was met while reading, and by quick verification; empty means none.
    """

    path: str
    teacher: str
    fingerprint: str
    split: str
    num_rows: int
    num_views: int
    fit_rows: int
    rows_per_view: tuple[int, ...]
    coverage: tuple[float, ...]
    shards: int
    shards_committed: int
    size_bytes: int
    arrays: tuple[FeatureArraySummary, ...]
    problems: tuple[str, ...]

    @property
    def is_healthy(self) -> bool:
        """Whether no damage was met."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return dataclasses.asdict(self)


class _Spread:
    """Count, mean and sum of squared deviations of all values, merged shard by shard."""

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, 0.0, 0.0

    def add(self, values: np.ndarray) -> None:
        if values.size == 0:
            return
        exact = values.astype(np.float64)
        mean = float(exact.mean())
        delta, total = mean - self.mean, self.count + values.size
        self.squares += float(np.square(exact - mean).sum())
        self.squares += delta * delta * self.count * values.size / total
        self.mean += delta * values.size / total
        self.count = total


def inspect_features(path: Path, *, progress: Progress | None = None) -> FeatureSummary:
    """Read a store of block features and summarise it; damaged shards are listed, not counted.

    Args:
        path: Directory of the store.
        progress: Called with (shards done, shards).

    Raises:
        StoreError: If there is no store.
        SchemaMismatchError: If it is of another kind or version.
        CorruptLabelError: If its metadata was altered.
    """
    store = open_block_features(location(path))
    schema, commits = store.schema, store.commits
    problems = verify_store(store)
    spreads = {array.name: _Spread() for array in schema.arrays}
    rows = np.zeros(schema.num_views, np.int64)
    places = np.argwhere(commits[:, :, 0])
    for done, (view, shard) in enumerate(places.tolist()):
        try:
            _add_shard(store, view, shard, spreads)
            rows[view] += commits[view, shard, 0]
        except ConcentrateError as error:
            problems += [] if str(error) in problems else [str(error)]
        if progress is not None:
            progress(done + 1, len(places))
    written = int(rows.sum())
    arrays = []
    for array in schema.arrays:
        spread, size = spreads[array.name], folder_bytes(store.path / array.name)
        counts = spread.count > 0 and array.dtype != "uint16"  # a mean of ids means nothing
        arrays.append(
            FeatureArraySummary(
                name=array.name,
                block=array.block,
                reduce=array.reduce,
                shape=array.shape,
                dtype=array.dtype,
                fitted=tuple(array.fitted),
                bytes=size,
                bytes_per_row=size / written if written else 0.0,
                mean=spread.mean if counts else None,
                deviation=math.sqrt(spread.squares / spread.count) if counts else None,
            )
        )
    return FeatureSummary(
        path=str(path),
        teacher=schema.teacher,
        fingerprint=schema.fingerprint,
        split=str(schema.split),
        num_rows=schema.num_rows,
        num_views=schema.num_views,
        fit_rows=schema.fit_rows,
        rows_per_view=tuple(rows.tolist()),
        coverage=tuple((rows / max(schema.num_rows, 1)).tolist()),
        shards=schema.num_shards,
        shards_committed=len(places),
        size_bytes=folder_bytes(store.path),
        arrays=tuple(arrays),
        problems=tuple(problems),
    )


def _add_shard(
    store: BlockFeatureStore, view: int, shard: int, spreads: dict[str, _Spread]
) -> None:
    found = store.read_shard(view, shard)
    for array, codes in zip(store.schema.arrays, found, strict=True):
        values, present = decode(array, codes, store.fitted(array.name).get(RANGE))
        spreads[array.name].add(values[present])
