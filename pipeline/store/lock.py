"""One writer a store or run folder: a lock that a dead process cannot leave behind.

In: the lock of a folder on a local disk. Left out: that of a prefix of a bucket, which has no
kernel (pipeline/object_lock.py). Here the kernel holds the lock (flock) and drops it with the
process, however that ends; the file beside the store only says whose it is. Whoever drives the
labelling of a store holds its lock, and hands shards to its tasks: tasks take no lock of their own.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.locations import is_local
from pipeline.object_lock import object_lock, owner_sentence, refusal
from storage_schemas.errors import StoreError


def lock_path(store: Path) -> Path:
    """Return the lock file of a store or run folder; it lies beside it and outlives it."""
    return store.with_name(f".{store.name}.lock")


@contextmanager
def writer_lock(store: Path) -> Iterator[Callable[[], None]]:
    """Hold the right to write a store or run folder, which need not exist yet.

    Yields:
        A function that raises `StoreError` once the lock is lost, which only one in a bucket can
        be. Long work calls it before it publishes something.

    Raises:
        StoreError: If another process holds it; says host, process and since when.
    """
    path = lock_path(store)
    if not is_local(path):
        with object_lock(path, store) as check:
            yield check
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise StoreError(f"{store} cannot be written: {error}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise refusal(store, _owner(file.read())) from None
        file.seek(0)
        file.truncate()
        json.dump({"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}, file)
        file.flush()
        yield lambda: None


def _owner(text: str) -> str:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    return owner_sentence(found if isinstance(found, dict) else {})
