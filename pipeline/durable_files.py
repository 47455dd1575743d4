"""Writing a file so that a crash leaves the old one or the new one, never a torn one.

On a local disk: a temporary file, fsync, rename, fsync of the folder. In a bucket: one PUT of the
whole object, which is there for every reader once it is answered, and not at all before.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from pipeline.locations import bucket_of, is_local

UPLOAD_THREADS = 8


def replace_durably(path: Path, write: Callable[[Path], object]) -> None:
    """Replace a file at once.

    Args:
        path: Its folder is created when missing.
        write: Called with a temporary local path; creates that file.

    Raises:
        OSError: If it cannot be written; see also `pipeline.locations.storage_errors`.
    """
    if not is_local(path):
        with tempfile.TemporaryDirectory(prefix="concentrate-") as made:
            whole = Path(made) / path.name
            write(whole)
            bucket_of(path).put_file(
                str(whole), cast(Any, path).path, max_concurrency=UPLOAD_THREADS
            )
        return
    path.parent.mkdir(parents=True, exist_ok=True)
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
    if is_local(path):
        replace_durably(path, lambda partial: partial.write_bytes(content))
    else:
        bucket_of(path).pipe_file(cast(Any, path).path, content)
