"""When bytes count as written: checksums and fsync.

In: the checksum of a decoded shard, and making files durable. Left out: the order of a shard's
write (shards.py).

zarr-python writes a chunk to a temporary file and renames it, but never calls fsync; after a power
loss a renamed file may be empty. So every file is synced before the record that vouches for it.
In a bucket a PUT that was answered is durable, and every write here waits for its answer.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from pipeline.locations import is_local
from storage_schemas.stored_array import StoreSchema

SYNC_THREADS = 8


def shard_crc(
    schema: StoreSchema, name: str, view: int, shard: int, values: npt.NDArray[Any]
) -> int:
    """Return the crc32c of one decoded shard.

    It covers the place (fingerprint, array, view, shard) and then the values, little-endian in C
    order, padded with fill to a whole shard. So a shard is valid in its own place only, and stays
    valid when the store grows.

    Args:
        schema: Of the store.
        name: Of the array.
        view: View of the shard.
        shard: Index along the rows.
        values: (rows, *cell) with rows <= shard_rows.
    """
    values = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    place = f"{schema.fingerprint}/{name}/{view}/{shard}/".encode()
    crc: int = google_crc32c.extend(google_crc32c.value(place), values.view(np.uint8).reshape(-1))
    missing = schema.shard_rows - len(values)
    if not missing:
        return crc
    array = next(array for array in schema.stored_arrays if array.name == name)
    return int(google_crc32c.extend(crc, array.empty(missing).view(np.uint8).reshape(-1)))


def sync(files: Iterable[Path], root: Path) -> None:
    """Flush files and every directory between them and `root` to the disk.

    A file that is not there is skipped: its removal is what the directories record. In a bucket
    there is nothing to do.
    """
    if not is_local(root):
        return
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
