"""Where bytes lie: a folder of a local disk, or a prefix of an S3 bucket.

In: turning the text of a project file or command line into a path, and the few things that differ
between the two: how an object is put and removed, which errors a store can raise, how large a
folder is, and where what must be local goes. Left out: durability (durable_files.py) and locks.

A place in a bucket is a `upath.UPath`, which has the methods of `pathlib.Path`, so nearly all code
takes either and is typed `Path`. fsspec and s3fs are imported for an `s3://` text only. Endpoint
and credentials come from the standard AWS environment (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, ...).
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import sys
from pathlib import Path
from typing import Any, cast

from storage_schemas.errors import ConfigError

_URL = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*):/")


def location(place: str | Path) -> Path:
    """Return the path that a text names: of a local disk, or of a bucket (`s3://bucket/prefix`).

    Args:
        place: A path is returned as it is.

    Raises:
        ConfigError: If the scheme is unknown, the URL names no bucket or climbs, or the extra
            `s3` is not installed.
    """
    if not isinstance(place, str):
        return place
    if _URL.match(place) is None:
        return Path(place)
    bucket, *prefix = place.removeprefix("s3://").rstrip("/").split("/")
    if not place.startswith("s3://") or not bucket or {"", ".", ".."} & {bucket, *prefix}:
        raise ConfigError(
            place, ["must be a path of this machine, or s3://bucket/prefix without empty parts"]
        )
    try:
        import s3fs  # noqa: F401  (only asked whether it is there)
        from upath import UPath
    except ImportError as error:
        raise ConfigError(
            place, [f'needs the extra s3: pip install "concentrate[s3]" ({error})']
        ) from error
    # Other processes write to the bucket: a listing is never remembered. With a concurrency above
    # 1, s3fs asks for the size of every object before it reads it.
    found = UPath(place.rstrip("/"), use_listings_cache=False, max_concurrency=1)
    return cast(Path, found)


def is_local(path: Path) -> bool:
    """Tell whether a path is of a local disk."""
    return isinstance(path, Path)


def bucket_of(path: Path) -> Any:
    """Return the s3fs file system of a path in a bucket."""
    return cast(Any, path).fs


def read_whole(path: Path, *, largest: int | None = None) -> bytes:
    """Return the bytes of a file or object.

    An object comes as one answer: `path.read_bytes()` would ask for its size first, and cut what
    another process has replaced by something longer in between.

    Args:
        path: A regular file; a pipe could keep the reader for ever.
        largest: How many bytes it may hold. An object is then asked for its size first.

    Raises:
        OSError: If it cannot be read (see also `storage_errors`); FileNotFoundError if it is not
            there or no regular file.
        ValueError: If it is larger than allowed.
    """
    if is_local(path):
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise FileNotFoundError(f"{path} is no regular file")
    if largest is not None:
        size = status.st_size if is_local(path) else int(bucket_of(path).info(str(path))["size"])
        if size > largest:
            raise ValueError(f"must be at most {largest} bytes, got {size}")
    if is_local(path):
        return path.read_bytes()
    return cast(bytes, bucket_of(path).cat_file(cast(Any, path).path))


def remove(path: Path) -> None:
    """Remove a file or object; one that is not there is fine."""
    if is_local(path):
        path.unlink(missing_ok=True)
    else:
        bucket_of(path).rm_file(cast(Any, path).path)


def folder_bytes(folder: Path) -> int:
    """Return the size of all files below a folder."""
    return folder_size_and_time(folder)[0]


def folder_size_and_time(folder: Path) -> tuple[int, float]:
    """Return the size of all files below a folder, and when the newest was written (0: none)."""
    if is_local(folder):
        files = [file.stat() for file in folder.rglob("*") if file.is_file()]
        return sum(f.st_size for f in files), max((f.st_mtime for f in files), default=0.0)
    found = bucket_of(folder).find(cast(Any, folder).path, detail=True).values()
    times = [info["LastModified"].timestamp() for info in found if info.get("LastModified")]
    return sum(int(info["size"]) for info in found), max(times, default=0.0)


def remove_folder(folder: Path, *, first: str = "") -> None:
    """Remove a folder and all below it.

    Args:
        folder: One that is not there is fine in a bucket, and a FileNotFoundError on a disk.
        first: In a bucket, the object below it that goes before all others, durably.
    """
    if is_local(folder):
        shutil.rmtree(folder)
        return
    if first:
        remove(folder / first)
    bucket = bucket_of(folder)
    objects = list(bucket.find(cast(Any, folder).path))
    if objects:
        bucket.rm(objects)


def local_folder(path: Path) -> Path:
    """Return where what must be local goes, for a folder that may lie in a bucket.

    A local folder is that place itself. For one in a bucket it is a folder of the user's cache,
    which is safe to delete.
    """
    if is_local(path):
        return path
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "concentrate" / hashlib.sha256(str(path).encode()).hexdigest()[:16]


def bucket_errors() -> tuple[type[Exception], ...]:
    """Return the errors by which a bucket fails and that are no OSError.

    s3fs turns the answers of a server into OSError; a server that does not answer, or missing
    credentials, come as errors of the libraries below it.
    """
    known = (("botocore.exceptions", "BotoCoreError"), ("aiohttp", "ClientError"))
    return tuple(getattr(sys.modules[name], kind) for name, kind in known if name in sys.modules)


def storage_errors() -> tuple[type[Exception], ...]:
    """Return all errors by which a disk or a bucket fails, to be caught together."""
    return (OSError, *bucket_errors())
