"""Writing a file so that a crash leaves the old one or the new one, never a torn one.

In: one file replaced at once, and what is said when a disk is full or may not be written. Left
out: the order of a store's files (pipeline.store).

On a local disk: a temporary file, fsync, rename, fsync of the folder. In a bucket: one PUT of the
whole object, which is there for every reader once it is answered, and not at all before.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any, cast

from pipeline.locations import bucket_of, is_local, storage_errors
from storage_schemas.errors import StoreError

FULL = (errno.ENOSPC, errno.EDQUOT)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


def free_bytes(path: Path) -> int | None:
    """Return the free bytes of the disk that a path lies on or would lie on; None for a bucket."""
    if not is_local(path):
        return None
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def not_written(
    what: object, folder: Path, error: Exception, needed: int | None = None
) -> StoreError:
    """Return the error for something that could not be written: why, and what to do.

    Args:
        what: A path, or a sentence's subject that begins with one.
        folder: Where the disk is looked at.
        error: Of the operating system, or of a bucket (`pipeline.locations.storage_errors`).
        needed: Bytes that this one write takes at most, where they are known.
    """
    reason = getattr(error, "strerror", None) or error
    message = f"{what} cannot be written: {reason}"
    number = getattr(error, "errno", None)
    free = free_bytes(folder)
    if number in FULL and free is not None:
        needs = f"this needs about {needed:,} bytes, " if needed is not None else ""
        message += (
            f"; {needs}{free:,} are free at {folder}. Free some and run the same command: what is "
            "committed stays"
        )
    elif number in FORBIDDEN:
        message += (
            f" ({getattr(error, 'filename', None) or folder}). Make it writable for this user, or "
            "set another workspace, and run the same command: what is committed stays"
        )
    return StoreError(message)


def write_durably(path: Path, content: bytes) -> None:
    """Replace a file by these bytes at once; its folder is created when missing.

    Raises:
        StoreError: If it cannot be written; the old file and nothing else is there then.
    """
    try:
        if is_local(path):
            _replace(path, content)
        else:
            bucket_of(path).pipe_file(cast(Any, path).path, content)
    except storage_errors() as error:
        raise not_written(path, path.parent, error, len(content)) from error


def _replace(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _remove_leftovers(path: Path) -> None:
    """Remove what killed processes left beside this file, so that kills do not fill the disk."""
    for partial in path.parent.glob(f".{path.name}.partial-*"):
        owner = partial.name.rpartition("-")[2]
        if not (owner.isdecimal() and is_running(int(owner))):
            partial.unlink(missing_ok=True)


def is_running(pid: int) -> bool:
    """Tell whether a process of this machine has that number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is there, and another user's
        return True
    return True
