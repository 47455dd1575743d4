"""Writing a file so that a crash leaves the old one or the new one, never a torn one.

In: one file replaced at once, and what is said when a disk is full or may not be written. Left
out: the order of a store's files (pipeline.store).
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from storage_schemas.errors import StoreError

FULL = (errno.ENOSPC, errno.EDQUOT)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


def free_bytes(path: Path) -> int:
    """Return the free bytes of the disk that a path lies on or would lie on."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def not_written(
    what: object, folder: Path, error: OSError, needed: int | None = None
) -> StoreError:
    """Return the error for something that could not be written: why, and what to do.

    Args:
        what: A path, or a sentence's subject that begins with one.
        folder: Where the disk is looked at.
        error: Of the operating system.
        needed: Bytes that this one write takes at most, where they are known.
    """
    message = f"{what} cannot be written: {error.strerror or error}"
    if error.errno in FULL:
        needs = f"this needs about {needed:,} bytes, " if needed is not None else ""
        message += (
            f"; {needs}{free_bytes(folder):,} are free at {folder}. Free some and run the same "
            "command: what is committed stays"
        )
    elif error.errno in FORBIDDEN:
        message += (
            f" ({error.filename or folder}). Make it writable for this user, or set another "
            "workspace, and run the same command: what is committed stays"
        )
    return StoreError(message)


def replace_durably(path: Path, write: Callable[[Path], object]) -> None:
    """Replace a file at once: temporary file beside it, fsync, rename, fsync of the folder.

    Args:
        path: Its folder is created when missing.
        write: Called with the temporary path; creates that file.

    Raises:
        StoreError: If it cannot be written; the old file and nothing else is there then.
    """
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        try:
            write(partial)
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise not_written(path, path.parent, error) from error


def write_durably(path: Path, content: bytes) -> None:
    """Replace a file by these bytes, as `replace_durably`.

    Raises:
        StoreError: If it cannot be written; the old file and nothing else is there then.
    """
    replace_durably(path, lambda partial: partial.write_bytes(content))


def _remove_leftovers(path: Path) -> None:
    """Remove what killed processes left beside this file, so that kills do not fill the disk."""
    for partial in path.parent.glob(f".{path.name}.partial-*"):
        owner = partial.name.rpartition("-")[2]
        if not (owner.isdecimal() and _is_alive(int(owner))):
            partial.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is there, and another user's
        return True
    return True
