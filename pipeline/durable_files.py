"""Writing a file so that a crash leaves the old one or the new one, never a torn one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def replace_durably(path: Path, write: Callable[[Path], object]) -> None:
    """Replace a file at once: temporary file beside it, fsync, rename, fsync of the folder.

    Args:
        path: Its folder is created when missing.
        write: Called with the temporary path; creates that file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
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


def write_durably(path: Path, content: bytes) -> None:
    """Replace a file by these bytes, as `replace_durably`."""
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
