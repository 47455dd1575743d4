"""`BlockFeatureStore`: one teacher's block features, on a disk or in a bucket.

In: creating, opening, writing and reading a store whose arrays are tapped blocks; the constants
that its reductions were fitted with. Left out: the reductions (pipeline.teachers.reductions) and
all that it shares with soft labels: shards and their commit records (shards.py), rows in memory
(row_reader.py), metadata (opening.py), growth (growth.py).

A store is created with its constants in it, so there is never one without them, and whoever goes
on with it, after a kill or after more images were added, uses the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.locations import is_local, location
from pipeline.store.fitted_constants import Fitted, altered_constant, read_constant
from pipeline.store.held_rows import HeldRows
from pipeline.store.opening import create_store, read_stored
from pipeline.store.row_reader import Rows, ShardCache
from pipeline.store.sharded_store import ShardedStore
from pipeline.store.shards import Array
from storage_schemas.block_features import (
    RANGE,
    BlockFeatureSchema,
    DecodedFeatures,
    decode,
    encode,
    fitted_digest,
)
from storage_schemas.errors import SchemaMismatchError


class BlockFeatureStore(ShardedStore[BlockFeatureSchema]):
    """Handle of a store; `create_block_features` and `open_block_features` return it.

    Args:
        path: Directory of the store.
        schema: What its attributes say.
        cache: Where shards that `fetch` has decompressed are kept.
    """

    def __init__(self, path: Path, schema: BlockFeatureSchema, cache: ShardCache) -> None:
        super().__init__(path, schema, cache)
        self._fitted: dict[str, npt.NDArray[np.float64]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """Carry the description only; the arrays are opened where it arrives."""
        return type(self), (self.path, self.schema, self._cache)

    @property
    def shapes(self) -> dict[str, tuple[int, int, int]]:
        """(channels, height, width) of each array, by its name in `TargetBatch.features`."""
        return {f"{self.schema.teacher}/{one.name}": one.shape for one in self.schema.arrays}

    def fitted(self, name: str) -> dict[str, npt.NDArray[np.float64]]:
        """Return the constants of one array by name, e.g. `basis` and `mean` of a PCA.

        Raises:
            CorruptLabelError: If they are not those that the store was made with.
            StoreError: If they cannot be read.
        """
        return {one: self._constant(f"{one}/{name}") for one in self.schema.array(name).fitted}

    def _constant(self, place: str) -> npt.NDArray[np.float64]:
        if place not in self._fitted:
            values = read_constant(self.path, place)
            wanted, got = self.schema.fitted_arrays[place].digest, fitted_digest(values)
            if got != wanted:
                raise altered_constant(self.path, place, f"sha256 must be {wanted}, got {got}")
            self._fitted[place] = values
        return self._fitted[place]

    def _range(self, name: str) -> npt.NDArray[np.float64] | None:
        return self.fitted(name).get(RANGE)

    # --- writing ----------------------------------------------------------------------------

    def empty_shard(self, *shape: int) -> tuple[Array, ...]:
        """Return (*shape, shard_rows, channels, height, width) of fill for each array."""
        arrays = self.schema.stored_arrays
        return tuple(array.empty(*shape, self.schema.shard_rows) for array in arrays)

    def encode(self, name: str, values: npt.NDArray[np.floating[Any]]) -> Array:
        """Return (B, channels, height, width) values of one array as they are stored.

        Raises:
            ValueError: If they are not finite, or beyond the array's type.
        """
        return encode(self.schema.array(name), values, self._range(name))

    def write_shard(self, view: int, shard: int, *values: Array) -> tuple[int, ...]:
        """Write and commit one whole shard of all arrays; only one writer may do so at a time.

        The order is that of soft labels: old commit record removed, the arrays, files and
        directories synced, commit record, synced.

        Args:
            view: View of the shard.
            shard: Index along the rows.
            values: Of each array, stored values of shard_rows rows, or of as many as there are.

        Returns:
            The commit record.

        Raises:
            ValueError: If they are not what `encode` returns, or hold no row.
            StoreError: If the store cannot be written.
        """
        record = self._files.write(view, shard, *values)
        self._forget(view, shard)
        return record

    # --- reading ----------------------------------------------------------------------------

    def read_shard(self, view: int, shard: int) -> tuple[Array, ...]:
        """Read one shard of all arrays anew, as stored, and check it against its commit record.

        Raises:
            MissingLabelError: If the shard has no commit record.
            CorruptLabelError: If the bytes disagree with it; names array, view and shard.
        """
        return self._files.read(view, shard)

    def structure_problem(self, name: str, view: int, shard: int) -> str | None:
        """Return what is wrong with the file of a committed shard of one array, or None.

        Raises:
            OSError: If the file cannot be read.
        """
        return self._files.structure_problem(name, view, shard, heads=is_local(self.path))

    def hold(self, rows: Rows, views: npt.NDArray[np.bool_] | None = None) -> None:
        """Keep the features of these ascending rows in memory, as stored.

        Args:
            rows: (n,) ascending.
            views: (n, V) bool, which of their views; None: all. Others are then refused.

        Raises:
            MissingLabelError: If one of them has not been written.
            CorruptLabelError: If stored bytes disagree with their commit record.
        """
        self._held = HeldRows(self._files, rows, views, kept=lambda stored: stored)

    def fetch(self, rows: Rows, views: Rows) -> dict[str, DecodedFeatures]:
        """Return the features of (B,) rows and (B,) views by array.

        Shards are read once and kept in memory as far as the cache has room.

        Raises:
            MissingLabelError: If one of them has not been written; names row and view.
            CorruptLabelError: If stored bytes disagree with their commit record.
            StoreError: If a row or view is not in the store.
        """
        stored = self._held.gather(rows, views) if self._held is not None else None
        if stored is None:
            stored = self._rows.fetch(rows, views)
        return {
            array.name: decode(array, codes, self._range(array.name))
            for array, codes in zip(self.schema.arrays, stored, strict=True)
        }


def create_block_features(
    path: Path, schema: BlockFeatureSchema, fitted: Fitted | None = None
) -> BlockFeatureStore:
    """Create an empty store with its constants, never seen half made.

    Args:
        path: Where it goes, e.g. features/<teacher>/<fingerprint>.zarr.
        schema: What it says of itself. Library versions and the time are filled in when empty.
        fitted: The constants, by their place in the store (see `BlockFeatureSchema.fitted_arrays`).

    Raises:
        SchemaMismatchError: If it would be larger than readers take on; lists every limit.
        StoreError: If something is there already, or the place cannot be written.
        ValueError: If the constants are not those that the schema names.
    """
    fitted = fitted or {}
    digests = {place: fitted_digest(values) for place, values in fitted.items()}
    wanted = {place: one.digest for place, one in schema.fitted_arrays.items()}
    if digests != wanted:
        raise ValueError(f"constants must be {wanted}, got {digests}")
    made = create_store(path, schema, fitted)
    return BlockFeatureStore(*made, ShardCache())


def open_block_features(
    path: Path,
    *,
    expected: BlockFeatureSchema | None = None,
    cache: ShardCache | None = None,
) -> BlockFeatureStore:
    """Open a store, or say everything that keeps it from being the one that is expected.

    Args:
        path: Directory of the store.
        expected: What it must say of itself (see `BlockFeatureSchema.validate`).
        cache: Where shards that `fetch` has decompressed are kept, maybe with those of other
            stores; None: 256 MiB of its own.

    Raises:
        StoreError: If there is no store.
        SchemaMismatchError: If it is of another kind or a newer version, or differs from
            `expected`; lists every field.
        CorruptLabelError: If its metadata was altered.
    """
    path = location(path)
    schema, problems = read_stored(path, BlockFeatureSchema)
    if expected is not None:
        problems += expected.validate(schema)
    if problems:
        raise SchemaMismatchError(str(path), problems)
    return BlockFeatureStore(path, schema, cache or ShardCache())
