"""One writer a store or run folder: a lock that a dead process cannot leave behind.

In: the lock of a folder on a local disk. Left out: object stores, which have no such lock. The
kernel holds the lock (flock) and drops it with the process, however that ends; the file beside the
store only says whose it is. Whoever drives the labelling of a store holds its lock, and hands
shards to its tasks: tasks take no lock of their own.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.durable_files import not_written
from storage_schemas.errors import StoreError


def lock_path(store: Path) -> Path:
    """Return the lock file of a store or run folder; it lies beside it and outlives it."""
    return store.with_name(f".{store.name}.lock")


@contextmanager
def writer_lock(store: Path) -> Iterator[None]:
    """Hold the right to write a store or run folder, which need not exist yet.

    Raises:
        StoreError: If another process holds it; says host, process and since when. If the place
            cannot be written.
    """
    path = lock_path(store)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise not_written(store, store.parent, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise StoreError(
                f"{store} is being written by {_owner(file.read())}; wait until it is done, or "
                "end that process: what it has committed stays"
            ) from None
        file.seek(0)
        file.truncate()
        json.dump({"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}, file)
        file.flush()
        yield


def _owner(text: str) -> str:
    try:
        found = json.loads(text)
        age = max(0, round(time.time() - float(found["since"])))
        return f"process {int(found['pid'])} on {str(found['host'])!r} for {age} s"
    except (ValueError, KeyError, TypeError):
        return "another process"
