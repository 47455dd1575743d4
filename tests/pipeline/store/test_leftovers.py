"""Temporary files of killed writers."""

from __future__ import annotations

import os
import subprocess
import sys

from pipeline.durable_files import write_durably
from pipeline.store import verify_store
from pipeline.store.layout import shard_file
from pipeline.store.leftovers import remove_leftovers


def test_leftovers_of_a_store_are_removed(full_store):
    """Torn chunks, torn documents and stores never finished go; everything that counts stays."""
    files = set(full_store.path.rglob("*"))
    unfinished = full_store.path.with_name(f".{full_store.path.name}.x1.partial")
    (unfinished / "ids").mkdir(parents=True)
    other = full_store.path.with_name(".other.zarr.x1.partial")
    other.mkdir()
    shard_file(full_store.path, "ids", 0, 0).with_name("0.ab12.partial").write_bytes(b"torn")
    (full_store.path / "ids" / "zarr.json.99.partial").write_bytes(b"{")
    remove_leftovers(full_store.path)
    assert set(full_store.path.rglob("*")) == files
    assert not unfinished.exists()
    assert other.exists()
    assert verify_store(full_store, "full") == []


def test_leftovers_of_a_store_that_is_not_there(tmp_path):
    """A writer that died before the store appeared leaves nothing to trip over."""
    (tmp_path / ".a.zarr.x1.partial").mkdir()
    remove_leftovers(tmp_path / "a.zarr")
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_a_record_go_with_the_next_write(tmp_path):
    """The file of a dead process is removed, the one of a living writer stays."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for pid in (dead.pid, os.getppid()):
        (tmp_path / f".record.json.partial-{pid}").write_bytes(b"{")
    write_durably(tmp_path / "record.json", b"{}")
    assert {path.name for path in tmp_path.iterdir()} == {
        "record.json",
        f".record.json.partial-{os.getppid()}",
    }
