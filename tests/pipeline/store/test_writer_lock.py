"""Two writers of one store."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.store.lock import lock_path, writer_lock
from storage_schemas.errors import StoreError

HOLD = """
import sys
from pathlib import Path
from pipeline.store.lock import writer_lock
with writer_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that writes the store."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "a.zarr")],
        cwd=Path(__file__).parents[3],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_second_writer_is_refused_with_the_owner(holder, tmp_path):
    """The message names the host, the process and how long it has been writing."""
    with (
        pytest.raises(StoreError, match=rf"process {holder.pid} on .* for \d+ s") as caught,
        writer_lock(tmp_path / "a.zarr"),
    ):
        pass
    assert socket.gethostname() in str(caught.value)


def test_another_store_is_free(holder, tmp_path):
    """A lock is of one store only."""
    with writer_lock(tmp_path / "b.zarr"):
        assert str(os.getpid()) in lock_path(tmp_path / "b.zarr").read_text()


def test_lock_of_a_killed_writer_is_taken_over(holder, tmp_path):
    """After SIGKILL the next writer goes on at once, and the file names it."""
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with writer_lock(tmp_path / "a.zarr"):
        assert str(os.getpid()) in lock_path(tmp_path / "a.zarr").read_text()


def test_lock_is_free_after_an_error(tmp_path):
    """A writer that fails lets go."""
    with pytest.raises(RuntimeError), writer_lock(tmp_path / "a.zarr"):
        raise RuntimeError
    with writer_lock(tmp_path / "a.zarr"):
        pass


def test_a_torn_lock_file_is_no_obstacle(tmp_path):
    """Whatever the file holds, only a living owner refuses."""
    lock_path(tmp_path / "a.zarr").write_bytes(b"\x00{")
    with writer_lock(tmp_path / "a.zarr"):
        pass
