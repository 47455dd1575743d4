"""The metadata documents of a store: read, written, signed, and held against the schema.

In: `zarr.json` of the group and of the arrays. Left out: the arrays that they describe (layout.py)
and documents made again after damage (repair.py).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.durable_files import write_durably
from pipeline.locations import read_whole
from pipeline.store.layout import COMMITS, array_names, array_shape, limit_problems, stored_array
from storage_schemas.label_space import canonical_digest
from storage_schemas.stored_array import StoreSchema

GROUP = {"zarr_format": 3, "node_type": "group"}
SUBGROUP = {"attributes": {}, **GROUP}

# Beyond it a few bytes of metadata could ask for any memory or time.
LARGEST_DOCUMENT_BYTES = 2**26

COMPRESSORS = frozenset({"blosc", "gzip", "zstd"})
CHECKED_BYTES = ({"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"})


def read_document(path: Path, name: str = "") -> dict[str, Any]:
    """Return the metadata document of the group, or of one array.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is not a JSON object, too large, or nested too deeply.
    """
    try:
        content = read_whole(document_file(path, name), largest=LARGEST_DOCUMENT_BYTES)
        document = json.loads(content)
        json.dumps(document)  # its digest nests one level deeper
    except RecursionError:
        raise ValueError("metadata is nested too deeply") from None
    if not isinstance(document, dict):
        raise ValueError(f"{name or 'group'} metadata must be a JSON object")  # noqa: TRY004
    return document


def array_digest(document: dict[str, Any]) -> str:
    """Return the digest of an array's metadata without its shape, which grows."""
    return canonical_digest({key: value for key, value in document.items() if key != "shape"})


def shape_problems(schema: StoreSchema, documents: dict[str, dict[str, Any]]) -> list[str]:
    """Return one sentence per way in which metadata do not hold what the schema says.

    Args:
        schema: Of the store.
        documents: Metadata documents of the arrays by name.
    """
    problems = limit_problems(schema)
    for name, document in documents.items():
        if name in schema.fitted_shapes:
            continue  # checked against its own digest when it is read
        v, n, *cell = array_shape(schema, name)
        rows = 1 if name == COMMITS else schema.shard_rows
        dtype, fill = _type_and_fill(schema, name)
        grid = _at(document, "chunk_grid", "configuration", "chunk_shape")
        for field, expected in (
            ("data_type", dtype),
            ("fill_value", fill),
        ):
            if document.get(field) != expected:
                problems.append(f"{name}.{field} must be {expected!r}, got {document.get(field)!r}")
        if grid != [1, rows, *cell]:
            problems.append(f"{name} shards must be {[1, rows, *cell]}, got {grid}")
        shape = document.get("shape")
        # An interrupted growth leaves room for rows that the schema does not name yet.
        fits = (
            isinstance(shape, list)
            and len(shape) == 2 + len(cell)
            and [shape[0], *shape[2:]] == [v, *cell]
            and isinstance(shape[1], int)
            and n <= shape[1] < 2**63
        )
        if not fits:
            problems.append(f"{name}.shape must be {[v, n, *cell]} or longer, got {shape}")
        if name == COMMITS:
            problems += _bytes_problems("commits.codecs", document.get("codecs"))
        else:
            problems += _sharding_problems(name, document, [1, schema.chunk_rows, *cell])
        keys = document.get("chunk_key_encoding")
        separator = _at(document, "chunk_key_encoding", "configuration", "separator")
        if _at(document, "chunk_key_encoding", "name") != "default" or separator not in (None, "/"):
            problems.append(f"{name}.chunk_key_encoding must be the default with '/', got {keys}")
    return problems


def _type_and_fill(schema: StoreSchema, name: str) -> tuple[str, int | str]:
    if name == COMMITS:
        return "uint32", 0
    array = stored_array(schema, name)
    return str(array.dtype), "NaN" if math.isnan(array.fill) else int(array.fill)


def _at(tree: Any, *keys: str) -> Any:
    """Return what lies below these keys, None where there is no such place."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def _sharding_problems(name: str, document: dict[str, Any], chunk: list[int]) -> list[str]:
    codecs = document.get("codecs")
    sharding = codecs[0] if isinstance(codecs, list) and len(codecs) == 1 else None
    if _at(sharding, "name") != "sharding_indexed":
        return [f"{name}.codecs must be sharding_indexed alone, got {codecs}"]
    found = _at(sharding, "configuration")
    problems = _bytes_problems(f"{name}.index_codecs", _at(found, "index_codecs"))
    if _at(found, "index_location") not in (None, "end"):
        problems.append(f"{name}.index_location must be 'end', got {found['index_location']!r}")
    if _at(found, "chunk_shape") != chunk:
        problems.append(f"{name} chunks must be {chunk}, got {_at(found, 'chunk_shape')}")
    inner = _at(found, "codecs")
    names = [_at(codec, "name") for codec in inner] if isinstance(inner, list) else []
    rest = names[1:] if names[:1] == ["bytes"] else ["?"]
    compressors = [codec for codec in rest if codec != "crc32c"]
    if len(compressors) > 1 or not COMPRESSORS.issuperset(compressors):
        problems.append(
            f"{name} chunk codecs must be bytes, then at most one of {sorted(COMPRESSORS)}, and "
            f"crc32c, got {inner}"
        )
    return problems


def _bytes_problems(what: str, codecs: Any) -> list[str]:
    if codecs == list(CHECKED_BYTES):
        return []
    return [f"{what} must be {list(CHECKED_BYTES)}, got {codecs}"]


def replace_document(path: Path, document: Mapping[str, Any]) -> None:
    """Replace a metadata document whole, durably."""
    write_durably(path, document_bytes(document))


def document_bytes(document: Mapping[str, Any]) -> bytes:
    """Return the one spelling in which metadata documents are written, here and by zarr."""
    return json.dumps(document, indent=2).encode("ascii")


def document_file(path: Path, name: str = "") -> Path:
    """Return the file of the group's metadata document, or of an array's."""
    return (path / name if name else path) / "zarr.json"


def write_attributes(
    path: Path, schema: StoreSchema, known: Mapping[str, Any] | None = None
) -> None:
    """Write the group's metadata: the schema, digests of the arrays' metadata, and their own.

    A new store is there from then on, so its arrays come first.

    Args:
        path: Directory of the store.
        schema: Of the store.
        known: Attributes of others that stay.
    """
    signed = {
        schema.kind: schema.to_attributes(),
        "arrays": {name: array_digest(read_document(path, name)) for name in array_names(schema)},
    }
    attributes = {**(known or {}), **signed, "digest": canonical_digest(signed)}
    replace_document(path / "zarr.json", {"attributes": attributes, **GROUP})
