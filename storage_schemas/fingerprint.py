"""Digests that name a store: of its declared parts, and of files.

In: the fingerprint of a set of named parts and the digest of one file. Left out: which parts a
store has (the caller decides) and digests of tensors (pipeline.models).
"""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from storage_schemas.label_space import canonical_digest

FINGERPRINT_DIGITS = 16
SETTLED_SECONDS = 2.0


def fingerprint(parts: Mapping[str, Any]) -> str:
    """Return the first 16 hex digits of the sha256 of the parts' canonical JSON.

    Args:
        parts: JSON values by name. Tuples and lists are the same; the order of names is free.
    """
    return canonical_digest(dict(parts))[:FINGERPRINT_DIGITS]


def file_digest(path: Path) -> str:
    """Return the sha256 hex digest of a file's bytes.

    Raises:
        OSError: If the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def known_file_digest(path: Path) -> str:
    """Return `file_digest`, read once a process for each state of a file of a local disk.

    A state is the file's device, inode, size, and times of its last write and of its last change
    of any kind: the kernel sets the latter, and no program can set it back. A file that was
    changed within the last two seconds is read again, since clocks of file systems are coarse.

    Raises:
        OSError: If the file cannot be read.
    """
    found = path.stat()
    if time.time() - max(found.st_mtime, found.st_ctime) < SETTLED_SECONDS:
        return file_digest(path)
    state = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    return _digest_of_state(path, state)


@functools.lru_cache(maxsize=1024)
def _digest_of_state(path: Path, state: tuple[int, ...]) -> str:
    return file_digest(path)
