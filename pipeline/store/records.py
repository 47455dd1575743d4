"""Commit records straight from their files, and which files a store has at all.

In: the places that have a file, by listing folders, and the record in its few bytes. Left out: what
to do with one that is not in order: zarr reads it again and has the error messages (shards.py).

A store of a billion rows has thousands of shards, nearly all absent in the store of one teacher.
zarr-python asks for each of them, 0.2 ms each; a listing names those that are there.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import google_crc32c

from pipeline.locations import bucket_of, is_local, read_whole
from pipeline.store.layout import COMMITS, shard_file
from storage_schemas.stored_array import StoreSchema

Place = tuple[int, int]
Record = tuple[int, ...]
_SHARD_KEY = re.compile(r"/c/([^/]+)/([^/]+)(?:/0)+$")


def written_places(
    path: Path, schema: StoreSchema, names: Iterable[str] | None = None
) -> list[Place]:
    """Return the ascending (view, shard) places at which an array has a file, or may have one.

    Args:
        path: Directory of the store.
        schema: What its attributes say; places outside of it are left out.
        names: Arrays to look for; None: those of the data.

    Raises:
        OSError: If a folder cannot be listed (see `pipeline.locations.storage_errors`).
    """
    found: set[Place] = set()
    for name in [array.name for array in schema.stored_arrays] if names is None else names:
        if is_local(path):
            listed = _local_places(path / name / "c", schema.num_views)
        else:
            listed = _bucket_places(path / name / "c")
        found.update(
            (int(view), int(shard))
            for view, shard in listed
            if _is_index(view) and _is_index(shard)
        )
    views, shards = schema.num_views, schema.num_shards
    return sorted(place for place in found if place[0] < views and place[1] < shards)


def _is_index(name: str) -> bool:
    return name.isascii() and name.isdecimal() and len(name) <= 20


def _local_places(folder: Path, views: int) -> Iterator[tuple[str, str]]:
    for view in range(views):
        try:
            with os.scandir(folder / str(view)) as entries:
                yield from ((str(view), entry.name) for entry in entries)
        except (FileNotFoundError, NotADirectoryError):
            continue


def _bucket_places(folder: Path) -> Iterator[tuple[str, str]]:
    for key in bucket_of(folder).find(cast(Any, folder).path):
        found = _SHARD_KEY.search(key)
        if found:
            yield found[1], found[2]


def read_records(
    path: Path, places: Iterable[Place], fields: int
) -> Iterator[tuple[Place, Record | None]]:
    """Yield each place with its record, as far as one is there; None where it is not in order.

    Args:
        path: Directory of the store.
        places: To read. In a bucket all are asked for at once.
        fields: Numbers of a record: written rows, and the crc32c of each array.

    Raises:
        OSError: If a file cannot be read (see `pipeline.locations.storage_errors`).
    """
    if not is_local(path):
        keys = {cast(Any, shard_file(path, COMMITS, *place)).path: place for place in places}
        answers = bucket_of(path).cat(list(keys), on_error="return") if keys else {}
        for key, answer in answers.items():
            if isinstance(answer, FileNotFoundError):
                continue
            if isinstance(answer, Exception):
                raise answer
            yield keys[key], parsed(answer, fields)
        return
    for place in places:
        try:
            yield place, parsed(read_whole(shard_file(path, COMMITS, *place)), fields)
        except (FileNotFoundError, NotADirectoryError):
            continue


def parsed(content: bytes, fields: int) -> Record | None:
    """Return the record in the bytes of its file, or None when they are not in order."""
    if len(content) != 4 * (fields + 1):
        return None
    *record, crc = struct.unpack(f"<{fields + 1}I", content)
    return tuple(record) if google_crc32c.value(content[:-4]) == crc else None


def holds_plain_records(document: dict[str, Any]) -> bool:
    """Tell whether the metadata of `commits` say the one layout that the specification allows."""
    codecs = document.get("codecs", ())
    return [codec["name"] for codec in codecs] == ["bytes", "crc32c"] and (
        codecs[0].get("configuration", {}).get("endian", "little") == "little"
    )
