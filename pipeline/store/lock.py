"""One writer a store or run folder, and no removal under a reader: locks that die with a process.

In: the locks of a folder on a local disk. Left out: that of a prefix of a bucket, which has no
kernel (pipeline/object_lock.py). Here the kernel holds a lock (flock) and drops it with the
process, however that ends; the files beside the store only say whose it is. Whoever drives the
labelling of a store holds its writer lock, and hands shards to its tasks, which may run in other
processes: they take no lock of their own, but check before each shard that the lock is still held
under the token that they were given. A process that reads a store shares its reader lock, which
keeps nobody from writing; only `concentrate gc` asks for both alone. In a bucket readers hold
nothing.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
import uuid
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pipeline.durable_files import not_written
from pipeline.locations import is_local
from pipeline.object_lock import (
    object_lock,
    object_owner,
    object_token,
    owner_sentence,
    refusal,
)
from storage_schemas.errors import StoreError


def lock_path(store: Path) -> Path:
    """Return the lock file of a store or run folder; it lies beside it and outlives it."""
    return store.with_name(f".{store.name}.lock")


def readers_path(store: Path) -> Path:
    """Return the file that the readers of a store have locked together; it lies beside it."""
    return store.with_name(f".{store.name}.readers")


@contextmanager
def writer_lock(store: Path) -> Iterator[Callable[[], None]]:
    """Hold the right to write a store or run folder, which need not exist yet.

    Yields:
        A function that raises `StoreError` once the lock is lost, which only one in a bucket can
        be. Long work calls it before it publishes something.

    Raises:
        StoreError: If another process holds it; says host, process and since when. If the place
            cannot be written.
    """
    path = lock_path(store)
    if not is_local(path):
        with object_lock(path, store) as check:
            yield check
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise refusal(store, _owner(path)) from None
    except OSError as error:
        raise not_written(store, store.parent, error) from error
    try:
        owner = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": time.time(),
            "token": uuid.uuid4().hex,
        }
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(owner).encode(), 0)
        except OSError as error:
            raise not_written(store, store.parent, error) from error
        yield lambda: None
    finally:
        os.close(descriptor)


def lock_token(store: Path) -> str | None:
    """Return the token of the writer lock that is held at this moment; None when none is held.

    Whoever holds it reads its own, and gives it to the tasks that write on its behalf.
    """
    path = lock_path(store)
    if not is_local(store):
        return object_token(path)
    try:
        # Shared: NFS takes an exclusive lock only on a file that is open for writing.
        os.close(_locked(path, fcntl.LOCK_SH | fcntl.LOCK_NB, os.O_RDONLY))
    except BlockingIOError:
        return _document(path).get("token")
    except OSError:
        return None
    return None


def delegated_lock(store: Path, token: str | None) -> Callable[[], None]:
    """Return the check of a task that writes shards while another process holds the lock.

    Args:
        store: The store.
        token: That of the lock under which the task was handed its shards.

    Returns:
        Call it before each shard. It raises `StoreError` once that lock is not held any more: the
        holder has ended, or lost it to another writer.
    """

    def check() -> None:
        if token is None or lock_token(store) != token:
            raise StoreError(
                f"{store}: the run that handed out this shard does not hold the store's lock any "
                "more, so the shard was not written; run the command again. If that run still "
                "works, its workers do not see its locks: they need a file system that shares "
                "flock between machines, or a bucket"
            )

    return check


def share_reader_lock(reader: object, store: Path) -> weakref.finalize[..., object] | None:
    """Keep a store from being removed for as long as an object of this process lives.

    Args:
        reader: Whose end, or that of the process, lets go.
        store: The store.

    Returns:
        Call it to let go at once. None where no lock can be had, as on a read-only medium (what
        cannot be written cannot be removed either) or in a bucket.
    """
    if not is_local(store):
        return None
    try:
        descriptor = _locked(readers_path(store), fcntl.LOCK_SH, os.O_RDONLY | os.O_CREAT)
    except OSError:
        return None
    return weakref.finalize(reader, os.close, descriptor)


@contextmanager
def removal_lock(store: Path) -> Iterator[str | None]:
    """Hold a store against writers and readers alike; its lock files go with the lock.

    Yields:
        Who writes or reads it, and then nothing is held; None when it is held. In a bucket only a
        writer can be told.

    Raises:
        OSError: If its folder cannot be written.
    """
    if not is_local(store):
        with ExitStack() as held:
            try:
                held.enter_context(object_lock(lock_path(store), store))
            except StoreError:
                yield current_writer(store) or "being written"
                return
            yield None
        return
    paths = (lock_path(store), readers_path(store))
    with ExitStack() as held:
        for path in paths:
            try:
                held.callback(os.close, _locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB))
            except BlockingIOError:
                held.close()
                yield _busy(path)
                return
        yield None
        for path in paths:
            path.unlink(missing_ok=True)


def current_writer(store: Path) -> str | None:
    """Return who writes a store at this moment, as "being written by ..."; None: nobody."""
    if not is_local(store):
        owner = object_owner(lock_path(store))
        return None if owner is None else f"being written by {owner}"
    return _holder(lock_path(store))


def busy_reason(store: Path) -> str | None:
    """Return who writes or reads a store at this moment; None when nobody does.

    Readers of a bucket hold nothing: of them this knows nothing.
    """
    reader = _holder(readers_path(store)) if is_local(store) else None
    return current_writer(store) or reader


def _holder(path: Path) -> str | None:
    try:
        os.close(_locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB, os.O_RDONLY))
    except BlockingIOError:
        return _busy(path)
    except OSError:  # no lock file: it was never written or read here
        return None
    return None


def _locked(path: Path, operation: int, flags: int = os.O_RDWR | os.O_CREAT) -> int:
    """Open and lock a lock file; again when it was removed between the two."""
    while True:
        descriptor = os.open(path, flags, 0o666)
        try:
            fcntl.flock(descriptor, operation)
            if os.fstat(descriptor).st_nlink:
                return descriptor
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _busy(path: Path) -> str:
    return f"being written by {_owner(path)}" if path.suffix == ".lock" else "being read"


def _owner(path: Path) -> str:
    return owner_sentence(_document(path))


def _document(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        found = None
    return found if isinstance(found, dict) else {}
