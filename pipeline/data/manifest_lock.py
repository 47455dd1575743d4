"""One process at a time updates a manifest.

In: the lock, and waiting for it. Left out: what an update does (manifest.py). Two stages of a
project may begin in the same second: one by its schedule, one by an event. Both list the images,
so the second one waits for the first; it does not fail.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from pipeline.data.manifest_files import manifest_folder
from pipeline.durable_files import not_written
from pipeline.locations import is_local
from pipeline.object_lock import object_lock
from storage_schemas.errors import BusyError, ManifestError

POLL_SECONDS = 0.2


@contextmanager
def exclusive(workspace: Path, wait_seconds: float = 0) -> Iterator[None]:
    """Keep other processes from updating the same manifest.

    Args:
        workspace: Of the project.
        wait_seconds: For how long to wait for a process that is at it. Its lock ends with it, so
            whoever holds one is at work.

    Raises:
        ManifestError: If another process is still at it.
        StoreError: If the workspace cannot be written.
    """
    folder = manifest_folder(workspace)
    end = time.monotonic() + wait_seconds
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(_lock(folder))
                break
            except BusyError as error:
                if time.monotonic() >= end:
                    raise ManifestError(str(error)) from error
            time.sleep(POLL_SECONDS)
        yield


def _lock(folder: Path) -> AbstractContextManager[object]:
    return _file_lock(folder) if is_local(folder) else object_lock(folder / ".lock", folder)


@contextmanager
def _file_lock(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise not_written(folder, folder, error) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(
                f"{folder}: another process is updating this manifest; wait until it is done"
            ) from None
        yield
