"""When bytes count as written: checksums, fsync, atomic documents.

In: the checksum of a decoded shard, durable publication of files, and metadata documents replaced
whole. Left out: the order of a shard's write (soft_label_store.py).

zarr-python writes a chunk to a temporary file and renames it, but never calls fsync; after a power
loss a renamed file may be empty. So every file is synced before the record that vouches for it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from storage_schemas.soft_labels import SoftLabelSchema

SYNC_THREADS = 8


def shard_crc(
    schema: SoftLabelSchema, name: str, view: int, shard: int, values: npt.NDArray[Any]
) -> int:
    """Return the crc32c of one decoded shard.

    It covers the place (fingerprint, array, view, shard) and then the values, little-endian in C
    order, padded with fill to a whole shard. So a shard is valid in its own place only, and stays
    valid when the store grows.

    Args:
        schema: Of the store.
        name: ids or gaps.
        view: View of the shard.
        shard: Index along the rows.
        values: (rows, columns) with rows <= shard_rows.
    """
    values = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    place = f"{schema.fingerprint}/{name}/{view}/{shard}/".encode()
    crc: int = google_crc32c.extend(google_crc32c.value(place), values.view(np.uint8).reshape(-1))
    missing = (schema.shard_rows - len(values)) * values.shape[1] * values.itemsize
    # The fill value is the type's maximum: every byte of it is 0xff.
    return int(google_crc32c.extend(crc, b"\xff" * missing)) if missing else crc


def sync(files: Iterable[Path], root: Path) -> None:
    """Flush files and every directory between them and `root` to the disk.

    A file that is not there is skipped: its removal is what the directories record.
    """
    directories: set[Path] = {root}
    present = []
    for file in files:
        if file.exists():
            present.append(file)
        parent = file.parent
        while parent != root:
            if parent.exists():
                directories.add(parent)
            parent = parent.parent
    # Each call waits for the disk; together they wait about as long as one.
    with ThreadPoolExecutor(SYNC_THREADS) as pool:
        list(pool.map(_sync_one, [*present, *sorted(directories)]))


def _sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def document_bytes(document: Mapping[str, Any]) -> bytes:
    """Return the one spelling in which metadata documents are written, here and by zarr."""
    return json.dumps(document, indent=2).encode("ascii")


def replace_document(path: Path, document: Mapping[str, Any]) -> None:
    """Replace a metadata document whole, durably."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with temporary.open("wb") as file:
            file.write(document_bytes(document))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_one(path.parent)
