"""Where the bytes of a soft-label store lie: shapes, shards, codecs, files.

In: the shard layout for a number of rows, the three Zarr arrays with their codecs, and the file of
each shard. Left out: what the numbers mean (storage_schemas) and when they are written (commit.py).

Only codecs of the Zarr v3 core are used, so that other implementations read the same bytes. The
choices were measured: see "layout" in storage_schemas/README.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from pipeline.store.commit import replace_document
from storage_schemas.errors import ConfigError
from storage_schemas.label_space import canonical_digest
from storage_schemas.soft_labels import SoftLabelSchema

ARRAYS = ("ids", "gaps", "commits")
GROUP = {"zarr_format": 3, "node_type": "group"}
LARGEST_SHARD_ROWS = 262_144
SMALLEST_SHARD_ROWS = 4_096
LARGEST_CHUNK_ROWS = 16_384
SHARDS_WANTED = 16
BLOSC_COLUMNS = 32


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


def create_arrays(group: zarr.Group, schema: SoftLabelSchema) -> None:
    """Create the three arrays, empty."""
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
        group.create_array(
            name,
            shape=shape,
            dtype=dtype,
            fill_value=fill,
            shards=(1, schema.shard_rows, shape[2]),
            chunks=(1, schema.chunk_rows, shape[2]),
            filters=None,
            compressors=[compressor, Crc32cCodec()],
            dimension_names=("view", "row", "rank" if name == "ids" else "column"),
        )
    group.create_array(
        "commits",
        shape=array_shape(schema, "commits"),
        dtype="uint32",
        fill_value=0,
        chunks=(1, 1, 3),
        filters=None,
        compressors=[Crc32cCodec()],
        dimension_names=("view", "shard", "field"),
    )


def shard_file(path: Path, name: str, view: int, shard: int) -> Path:
    """Return the file of one shard, or of one commit record."""
    return path / name / "c" / str(view) / str(shard) / "0"


def read_document(path: Path, name: str = "") -> dict[str, Any]:
    """Return the metadata document of the group, or of one array.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is not a JSON object.
    """
    document = json.loads((path / name / "zarr.json").read_bytes())
    if not isinstance(document, dict):
        raise ValueError(f"{name or 'group'} metadata must be a JSON object")  # noqa: TRY004
    return document


def array_digest(document: dict[str, Any]) -> str:
    """Return the digest of an array's metadata without its shape, which grows."""
    return canonical_digest({key: value for key, value in document.items() if key != "shape"})


def shape_problems(schema: SoftLabelSchema, documents: dict[str, dict[str, Any]]) -> list[str]:
    """Return one sentence per array whose metadata does not hold what the schema says.

    Args:
        schema: Of the store.
        documents: Metadata documents of the arrays by name.
    """
    problems = []
    wanted_types = {"ids": schema.ids_dtype, "gaps": schema.gaps_dtype, "commits": "uint32"}
    wanted_fills = {"ids": schema.ids_fill, "gaps": schema.gaps_fill, "commits": 0}
    for name, document in documents.items():
        v, n, columns = array_shape(schema, name)
        rows = 1 if name == "commits" else schema.shard_rows
        grid = document.get("chunk_grid", {}).get("configuration", {}).get("chunk_shape")
        for field, expected in (
            ("data_type", str(wanted_types[name])),
            ("fill_value", wanted_fills[name]),
        ):
            if document.get(field) != expected:
                problems.append(f"{name}.{field} must be {expected!r}, got {document.get(field)!r}")
        if grid != [1, rows, columns]:
            problems.append(f"{name} shards must be {[1, rows, columns]}, got {grid}")
        shape = document.get("shape")
        # An interrupted growth leaves room for rows that the schema does not name yet.
        fits = (
            isinstance(shape, list)
            and len(shape) == 3
            and [shape[0], shape[2]] == [v, columns]
            and isinstance(shape[1], int)
            and shape[1] >= n
        )
        if not fits:
            problems.append(f"{name}.shape must be {[v, n, columns]} or longer, got {shape}")
    return problems


def write_attributes(
    path: Path, schema: SoftLabelSchema, document: Mapping[str, Any] | None = None
) -> None:
    """Replace the group's metadata: the schema, digests of the arrays' metadata, and their own.

    Args:
        path: Directory of the store.
        schema: Of the store.
        document: The group's metadata to go on from; None reads it.
    """
    signed = {
        "soft_labels": schema.to_attributes(),
        "arrays": {name: array_digest(read_document(path, name)) for name in ARRAYS},
    }
    known = (document or read_document(path))["attributes"]
    attributes = {**known, **signed, "digest": canonical_digest(signed)}
    replace_document(path / "zarr.json", {"attributes": attributes, **GROUP})
