"""Locks of a store: its writer's and its readers', as `concentrate gc` meets them."""

from __future__ import annotations

import fcntl
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.store import SoftLabelStore, open_soft_labels
from pipeline.store.lock import lock_path, readers_path, writer_lock
from pipeline.workspace import Workspace
from storage_schemas.errors import StoreError

Collect = Callable[..., dict[str, tuple[str, str]]]
Start = Callable[[str, Path], subprocess.Popen[str]]

READ = """
import sys
from pathlib import Path
import numpy as np
from pipeline.store import open_soft_labels
store = open_soft_labels(Path(sys.argv[1]))
print("read", store.fetch(np.arange(300), np.zeros(300, np.int64)).ids.shape, flush=True)
sys.stdin.readline()
print("read again", store.fetch(np.arange(300), np.ones(300, np.int64)).ids.shape, flush=True)
sys.stdin.readline()
"""
WRITE = """
import sys
from pathlib import Path
from pipeline.store.lock import writer_lock
with writer_lock(Path(sys.argv[1])):
    print("writing", flush=True)
    sys.stdin.readline()
"""
FORK = """
import os, sys
from pathlib import Path
from pipeline.store import open_soft_labels
handle = open_soft_labels(Path(sys.argv[1]))
handle.read_shard(0, 0)
ready, told = os.pipe()
if os.fork() == 0:
    handle.commit_record(0, 0)
    os.write(told, b"x")
    sys.stdin.readline()
    os._exit(0)
os.read(ready, 1)
del handle
print("only the child holds it", flush=True)
os.wait()
"""


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a process on a path and wait for its first line."""
    started: list[subprocess.Popen[str]] = []

    def run(code: str, path: Path) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", code, str(path)],
            cwd=Path(__file__).parents[3],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline()
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def store(workspace: Workspace, name: str) -> Path:
    """Path of a store."""
    return workspace.labels("birds", name * 16)


def test_a_store_that_is_being_written_stays(
    workspace: Workspace, collect: Collect, start: Start
) -> None:
    """A process holds the writer lock: its store and its unfinished one are named and kept."""
    partial = store(workspace, "0").with_name(f".{'0' * 16}.zarr.abc_1x.partial")
    partial.mkdir()
    writer = start(WRITE, store(workspace, "0"))
    found = collect(workspace)
    for name in ("0.zarr", partial.name.replace("0" * 16, "0")):
        assert found[name][0] == "keep"
        assert f"being written by process {writer.pid} on" in found[name][1]
    writer.communicate("\n")
    assert collect(workspace)["0.zarr"][0] == "removed"
    names = {path.name for path in store(workspace, "0").parent.iterdir()}
    assert names == {f"{'2' * 16}.zarr", "published.json", f".{'2' * 16}.zarr.readers"}


def test_a_store_that_is_being_read_stays(
    workspace: Workspace, collect: Collect, start: Start
) -> None:
    """While a process has a handle that has read, the store is kept and goes on to be readable."""
    reader = start(READ, store(workspace, "0"))
    assert collect(workspace)["0.zarr"] == ("keep", "being read")
    assert reader.stdin is not None
    assert reader.stdout is not None
    reader.stdin.write("\n")
    reader.stdin.flush()
    assert reader.stdout.readline() == "read again (300, 4)\n"
    os.kill(reader.pid, signal.SIGKILL)
    reader.wait()
    assert collect(workspace)["0.zarr"][0] == "removed"


def test_a_handle_lets_go_when_it_is_dropped(
    workspace: Workspace,
    collect: Collect,
) -> None:
    """Opening takes no lock, reading does, a pickled copy takes its own, dropping lets go."""
    path = store(workspace, "0")
    handle: SoftLabelStore | None = open_soft_labels(path)
    assert not readers_path(path).exists()
    assert handle is not None
    handle.read(np.arange(3), 0)
    copy = pickle.loads(pickle.dumps(handle))  # our own object
    copy.read(np.arange(3), 0)
    handle = None
    assert collect(workspace)["0.zarr"] == ("keep", "being read")
    del copy
    assert collect(workspace)["0.zarr"][0] == "removed"


def test_a_forked_child_holds_a_lock_of_its_own(
    workspace: Workspace, collect: Collect, start: Start
) -> None:
    """After the parent has dropped its handle, the child's still keeps the store."""
    process = start(FORK, store(workspace, "0"))
    assert collect(workspace)["0.zarr"] == ("keep", "being read")
    process.communicate("\n")
    assert collect(workspace)["0.zarr"][0] == "removed"


def test_a_store_without_a_lock_file_can_be_read(workspace: Workspace, monkeypatch: Any) -> None:
    """On a medium that takes no file, reading goes on without the lock."""

    def refuse(path: Any, *rest: Any) -> int:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("pipeline.store.lock.os.open", refuse)
    handle = open_soft_labels(store(workspace, "0"))
    ids, _ = handle.read_shard(0, 0)
    assert len(ids) == 128
    assert not readers_path(handle.path).exists()


def test_a_writer_that_waited_for_a_removal_holds_a_living_lock(
    workspace: Workspace, monkeypatch: Any
) -> None:
    """A lock file that was removed between its opening and its locking is opened anew."""
    path = store(workspace, "0")
    lock_path(path).touch()
    original, calls = fcntl.flock, []

    def flock(descriptor: int, operation: int) -> None:
        if not calls:
            lock_path(path).unlink()
        calls.append(operation)
        original(descriptor, operation)

    monkeypatch.setattr("pipeline.store.lock.fcntl.flock", flock)
    with writer_lock(path):
        assert len(calls) == 2
        assert str(os.getpid()) in lock_path(path).read_text()
        with pytest.raises(StoreError, match="is being written by"), writer_lock(path):
            pass
