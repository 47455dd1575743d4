"""Where the bytes of a store lie: shapes, shards, codecs, files.

In: the shard layout for a number of rows, the Zarr arrays with their codecs, and the file of each
shard. Left out: what the numbers mean (storage_schemas) and when they are written (commit.py).

Only codecs of the Zarr v3 core are used, so that other implementations read the same bytes. The
choices were measured: see "layout" in storage_schemas/README.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec
from zarr.storage import FsspecStore

from pipeline.locations import is_local
from storage_schemas.errors import ConfigError
from storage_schemas.stored_array import StoredArray, StoreSchema

COMMITS = "commits"
LARGEST_SHARD_ROWS = 262_144
SMALLEST_SHARD_ROWS = 4_096
LARGEST_CHUNK_ROWS = 16_384
SHARDS_WANTED = 16
BLOSC_COLUMNS = 32

# What a reader takes on: beyond these a few bytes of metadata could ask for any memory or time.
LARGEST_SHARD_BYTES = 2**31
LARGEST_NUM_SHARDS = 2**20


def _power_of_two(at_least: int) -> int:
    return 1 << max(at_least - 1, 0).bit_length()


def shard_layout(
    num_rows: int, shard_rows: int | None = None, chunk_rows: int | None = None
) -> tuple[int, int]:
    """Return (shard_rows, chunk_rows) of a new store.

    By default a shard is the power of two that cuts the rows into about 16, within 4,096 and
    262,144, and a chunk is a shard or 16,384 rows, whichever is smaller.

    Args:
        num_rows: N.
        shard_rows: Overrides the default.
        chunk_rows: Overrides the default.

    Raises:
        ConfigError: If a shard does not hold a whole number of chunks.
    """
    if shard_rows is None:
        shard_rows = _power_of_two(-(-num_rows // SHARDS_WANTED))
        shard_rows = min(max(shard_rows, SMALLEST_SHARD_ROWS), LARGEST_SHARD_ROWS)
        if chunk_rows is not None:
            shard_rows = max(shard_rows, chunk_rows)
    if chunk_rows is None:
        chunk_rows = min(shard_rows, LARGEST_CHUNK_ROWS)
        if shard_rows % chunk_rows:
            chunk_rows = shard_rows
    if shard_rows < 1 or chunk_rows < 1 or shard_rows % chunk_rows:
        raise ConfigError(
            "labels",
            [
                f"shard_rows must be a positive multiple of chunk_rows, got {shard_rows} and "
                f"{chunk_rows}; leave both out to have them chosen"
            ],
        )
    return shard_rows, chunk_rows


def array_names(schema: StoreSchema) -> tuple[str, ...]:
    """Return the names of all arrays: of the data, of their records, and of what was fitted."""
    return (*_growing(schema), *schema.fitted_shapes)


def _growing(schema: StoreSchema) -> tuple[str, ...]:
    return (*(array.name for array in schema.stored_arrays), COMMITS)


def group_names(schema: StoreSchema) -> tuple[str, ...]:
    """Return the groups inside the store's own: one for each kind of constant."""
    return tuple(dict.fromkeys(name.rpartition("/")[0] for name in schema.fitted_shapes))


def array_shape(schema: StoreSchema, name: str) -> tuple[int, ...]:
    """Return the shape of one array."""
    if name == COMMITS:
        return schema.num_views, schema.num_shards, 1 + len(schema.stored_arrays)
    if name in schema.fitted_shapes:
        return schema.fitted_shapes[name]
    return schema.num_views, schema.num_rows, *stored_array(schema, name).cell


def stored_array(schema: StoreSchema, name: str) -> StoredArray:
    """Return one array of a shard by name."""
    return next(array for array in schema.stored_arrays if array.name == name)


def array_place(path: Path) -> Path | FsspecStore:
    """Return an array's folder as zarr takes it."""
    if is_local(path):
        return path
    return FsspecStore.from_url(str(path), storage_options=dict(cast(Any, path).storage_options))


def _compressor(array: StoredArray) -> BloscCodec | ZstdCodec:
    if array.name == "gaps" and array.cell[0] < BLOSC_COLUMNS:
        return ZstdCodec(level=1)
    return BloscCodec(
        cname="zstd",
        clevel=5 if array.name == "ids" else 1,
        shuffle="bitshuffle",
        typesize=array.dtype.itemsize,
    )


def create_arrays(
    path: Path, schema: StoreSchema, fitted: Mapping[str, npt.NDArray[np.float64]] | None = None
) -> None:
    """Create the arrays, empty but for what was fitted; what lies in their folders is removed."""
    for array in schema.stored_arrays:
        zarr.create_array(
            array_place(path / array.name),
            shape=array_shape(schema, array.name),
            dtype=array.dtype,
            fill_value=array.fill,
            shards=(1, schema.shard_rows, *array.cell),
            chunks=(1, schema.chunk_rows, *array.cell),
            filters=None,
            compressors=[_compressor(array), Crc32cCodec()],
            dimension_names=("view", "row", *array.dimensions),
            overwrite=True,
        )
    shape = array_shape(schema, COMMITS)
    zarr.create_array(
        array_place(path / COMMITS),
        shape=shape,
        dtype="uint32",
        fill_value=0,
        chunks=(1, 1, shape[2]),
        filters=None,
        compressors=[Crc32cCodec()],
        dimension_names=("view", "shard", "field"),
        overwrite=True,
    )
    for name, shape in schema.fitted_shapes.items():
        made = zarr.create_array(
            array_place(path / name),
            shape=shape,
            dtype="float64",
            fill_value=0,
            chunks=shape,
            filters=None,
            compressors=[Crc32cCodec()],
            overwrite=True,
        )
        if fitted is not None:
            made[...] = fitted[name]


def shard_file(path: Path, name: str, view: int, shard: int, axes: int = 1) -> Path:
    """Return the file of one shard, or of one commit record.

    Args:
        path: Of the store.
        name: Of the array.
        view: View of the shard.
        shard: Index along the rows.
        axes: Axes of the array after view and row.
    """
    return (path / name / "c" / str(view) / str(shard)).joinpath(*["0"] * axes)


def shard_files(schema: StoreSchema, path: Path, view: int, shard: int) -> dict[str, Path]:
    """Return the files of one shard by array, its commit record the last."""
    files = {
        array.name: shard_file(path, array.name, view, shard, len(array.cell))
        for array in schema.stored_arrays
    }
    return {**files, COMMITS: shard_file(path, COMMITS, view, shard)}


def limit_problems(schema: StoreSchema) -> list[str]:
    """Return one sentence per limit of this reader that a store goes beyond."""
    rows = min(schema.shard_rows, max(schema.num_rows, schema.chunk_rows))
    shard_bytes = rows * sum(array.row_bytes for array in schema.stored_arrays)
    shards = schema.num_views * schema.num_shards
    found = (
        ("bytes of one shard", shard_bytes, LARGEST_SHARD_BYTES),
        ("shards of all views", shards, LARGEST_NUM_SHARDS),
    )
    return [f"{what} must be at most {most}, got {n}" for what, n, most in found if n > most]
