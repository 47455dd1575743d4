"""Where the bytes of a soft-label store lie: shapes, shards, codecs, files.

In: the shard layout for a number of rows, the three Zarr arrays with their codecs, and the file of
each shard. Left out: what the numbers mean (storage_schemas) and when they are written (commit.py).

Only codecs of the Zarr v3 core are used, so that other implementations read the same bytes. The
choices were measured: see "layout" in storage_schemas/README.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec
from zarr.storage import FsspecStore

from pipeline.locations import is_local
from storage_schemas.errors import ConfigError
from storage_schemas.soft_labels import SoftLabelSchema

ARRAYS = ("ids", "gaps", "commits")
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


def array_shape(schema: SoftLabelSchema, name: str) -> tuple[int, int, int]:
    """Return the shape of one array."""
    if name == "commits":
        return schema.num_views, schema.num_shards, 3
    return schema.num_views, schema.num_rows, schema.k if name == "ids" else schema.columns


def array_place(path: Path) -> Path | FsspecStore:
    """Return an array's folder as zarr takes it."""
    if is_local(path):
        return path
    return FsspecStore.from_url(str(path), storage_options=dict(cast(Any, path).storage_options))


def create_arrays(path: Path, schema: SoftLabelSchema) -> None:
    """Create the three arrays, empty; what lies in their folders is removed."""
    for name, dtype, fill, compressor in (
        (
            "ids",
            schema.ids_dtype,
            schema.ids_fill,
            BloscCodec(
                cname="zstd",
                clevel=5,
                shuffle="bitshuffle",
                typesize=schema.ids_dtype.itemsize,
            ),
        ),
        (
            "gaps",
            schema.gaps_dtype,
            schema.gaps_fill,
            ZstdCodec(level=1)
            if schema.columns < BLOSC_COLUMNS
            else BloscCodec(
                cname="zstd",
                clevel=1,
                shuffle="bitshuffle",
                typesize=schema.gaps_dtype.itemsize,
            ),
        ),
    ):
        shape = array_shape(schema, name)
        zarr.create_array(
            array_place(path / name),
            shape=shape,
            dtype=dtype,
            fill_value=fill,
            shards=(1, schema.shard_rows, shape[2]),
            chunks=(1, schema.chunk_rows, shape[2]),
            filters=None,
            compressors=[compressor, Crc32cCodec()],
            dimension_names=("view", "row", "rank" if name == "ids" else "column"),
            overwrite=True,
        )
    zarr.create_array(
        array_place(path / "commits"),
        shape=array_shape(schema, "commits"),
        dtype="uint32",
        fill_value=0,
        chunks=(1, 1, 3),
        filters=None,
        compressors=[Crc32cCodec()],
        dimension_names=("view", "shard", "field"),
        overwrite=True,
    )


def shard_file(path: Path, name: str, view: int, shard: int) -> Path:
    """Return the file of one shard, or of one commit record."""
    return path / name / "c" / str(view) / str(shard) / "0"


def limit_problems(schema: SoftLabelSchema) -> list[str]:
    """Return one sentence per limit of this reader that a store goes beyond."""
    rows = min(schema.shard_rows, max(schema.num_rows, schema.chunk_rows))
    shard_bytes = rows * schema.label_bytes
    shards = schema.num_views * schema.num_shards
    found = (
        ("bytes of one shard", shard_bytes, LARGEST_SHARD_BYTES),
        ("shards of all views", shards, LARGEST_NUM_SHARDS),
    )
    return [f"{what} must be at most {most}, got {n}" for what, n, most in found if n > most]
