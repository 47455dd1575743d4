"""Two writers of one store, on a disk and in a bucket."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline import object_lock
from pipeline.locations import is_local, read_whole, remove
from pipeline.store.lock import lock_path, writer_lock
from storage_schemas.errors import StoreError

on_both = pytest.mark.parametrize("location", ["local", "s3"], indirect=True)

HOLD = """
import sys
from pipeline.locations import location
from pipeline.store.lock import writer_lock
with writer_lock(location(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(location):
    """Another process that writes the store."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(location / "a.zarr")],
        cwd=Path(__file__).parents[3],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


@on_both
def test_second_writer_is_refused_with_the_owner(holder, location):
    """The message names the host, the process and how long it has been writing."""
    with (
        pytest.raises(StoreError, match=rf"process {holder.pid} on .* for \d+ s") as caught,
        writer_lock(location / "a.zarr"),
    ):
        pass
    assert socket.gethostname() in str(caught.value)


@on_both
def test_another_store_is_free(holder, location):
    """A lock is of one store only."""
    with writer_lock(location / "b.zarr"):
        assert str(os.getpid()) in lock_path(location / "b.zarr").read_text()


@on_both
def test_lock_of_a_killed_writer_is_taken_over(holder, location):
    """After SIGKILL the next writer goes on at once, and the file names it."""
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with writer_lock(location / "a.zarr"):
        assert str(os.getpid()) in lock_path(location / "a.zarr").read_text()


@on_both
def test_lock_is_free_after_an_error(location):
    """A writer that fails lets go."""
    with pytest.raises(RuntimeError), writer_lock(location / "a.zarr"):
        raise RuntimeError
    with writer_lock(location / "a.zarr"):
        pass


def test_a_torn_lock_file_is_no_obstacle(tmp_path):
    """Whatever the file holds, only a living owner refuses."""
    lock_path(tmp_path / "a.zarr").write_bytes(b"\x00{")
    with writer_lock(tmp_path / "a.zarr"):
        pass


def foreign_lock(store: Path, **fields: object) -> Path:
    """Put the lock of a process of another machine."""
    path = lock_path(store)
    said = {"host": "far", "pid": os.getpid(), "since": time.time(), "machine": "far", "token": "x"}
    path.write_bytes(json.dumps(said | fields).encode())
    return path


def test_lock_of_another_host_is_taken_only_when_stale(bucket, monkeypatch):
    """A living pid here says nothing of a far machine: its lock counts until it is not renewed."""
    foreign_lock(bucket / "a.zarr", pid=1 << 30)
    with pytest.raises(StoreError, match=r"process \d+ on 'far'"), writer_lock(bucket / "a.zarr"):
        pass
    monkeypatch.setattr(object_lock, "STALE_SECONDS", 1.0)
    time.sleep(2.2)  # the server's times are whole seconds
    with writer_lock(bucket / "a.zarr"):
        assert socket.gethostname() in lock_path(bucket / "a.zarr").read_text()
    assert not lock_path(bucket / "a.zarr").exists()


def test_of_many_takers_one_wins(bucket):
    """Threads that all find a dead lock at once: one writes, the others are refused."""
    foreign_lock(bucket / "a.zarr", machine=object_lock._machine(), pid=1 << 30)
    inside, refused = [], []
    start, end = threading.Barrier(8), threading.Event()

    def take() -> None:
        start.wait()
        try:
            with writer_lock(bucket / "a.zarr"):
                inside.append(1)
                end.wait(30)
        except StoreError:
            refused.append(1)
        if len(refused) == 7:
            end.set()

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(inside), len(refused)) == (1, 7)


def test_a_lock_is_renewed_and_outlives_its_time(bucket, monkeypatch):
    """A writer that works for longer than the stale time keeps its lock."""
    monkeypatch.setattr(object_lock, "RENEW_SECONDS", 0.2)
    monkeypatch.setattr(object_lock, "STALE_SECONDS", 3.0)
    with writer_lock(bucket / "a.zarr") as check:
        first = json.loads(read_whole(lock_path(bucket / "a.zarr")))
        time.sleep(4.5)
        later = json.loads(read_whole(lock_path(bucket / "a.zarr")))
        assert later["renewed"] > first["renewed"] + 2
        assert later["since"] == first["since"]
        with pytest.raises(StoreError, match="is being written"), writer_lock(bucket / "a.zarr"):
            pass
        check()


@pytest.mark.parametrize("theft", ["taken", "deleted"])
def test_a_writer_whose_lock_was_taken_fails(bucket, monkeypatch, theft):
    """It says to whom it lost the right, when asked and at the end, and leaves the other's lock."""
    monkeypatch.setattr(object_lock, "RENEW_SECONDS", 0.1)
    path = lock_path(bucket / "a.zarr")
    noticed = []

    def write() -> None:
        with writer_lock(bucket / "a.zarr") as check:
            check()
            foreign_lock(bucket / "a.zarr") if theft == "taken" else remove(path)
            while not noticed:
                time.sleep(0.1)
                try:
                    check()
                except StoreError as error:
                    noticed.append(str(error))

    with pytest.raises(StoreError) as caught:
        write()
    assert noticed == [str(caught.value)]
    said = "process .* on 'far'" if theft == "taken" else "a process that has ended since"
    assert re.search(f"lost the right to write it to {said}", noticed[0])
    assert path.exists() == (theft == "taken")


def test_the_answer_to_a_put_that_was_lost_is_no_refusal(bucket, monkeypatch):
    """A PUT that is repeated since its answer was lost finds the lock, and that it is its own."""
    original = object_lock._ObjectLock._put
    calls = []

    def twice(self, **condition):
        calls.append(condition)
        original(self, **condition)
        return original(self, **condition)

    monkeypatch.setattr(object_lock._ObjectLock, "_put", twice)
    with writer_lock(bucket / "a.zarr"):
        assert calls == [{"IfNoneMatch": "*"}]


def test_a_server_without_conditional_puts_is_refused(bucket, monkeypatch):
    """Where the condition is ignored nobody gets the lock, since nobody could be refused it."""
    original = object_lock._ObjectLock._put
    monkeypatch.setattr(object_lock._ObjectLock, "_put", lambda self, **_: original(self))
    with pytest.raises(StoreError, match="ignores If-None-Match"), writer_lock(bucket / "a.zarr"):
        pass
    assert not lock_path(bucket / "a.zarr").exists()


def test_a_bucket_that_is_not_there_is_said(s3_server):
    """A bucket that does not exist is an error that names the store."""
    from pipeline.locations import location

    store = location("s3://there-is-no-such-bucket/a.zarr")
    assert not is_local(store)
    with pytest.raises(StoreError, match=r"a\.zarr cannot be written"), writer_lock(store):
        pass
