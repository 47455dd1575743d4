"""Tasks that write shards while another process holds the writer lock."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config import load_project
from pipeline.data import update_manifest
from pipeline.store.lock import delegated_lock, lock_token, writer_lock
from pipeline.teachers.labelling import label_shards
from pipeline.teachers.spec import resolve_teacher
from pipeline.teachers.stores import (
    ShardWork,
    missing_work,
    open_or_create,
    still_missing,
    store_schema,
)
from storage_schemas.errors import StoreError
from storage_schemas.manifest import TRAIN

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
def holder(location: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of a store."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(location / "a.zarr")],
        cwd=Path(__file__).parents[3],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


@on_both
def test_a_task_may_write_while_the_lock_of_its_run_is_held(
    holder: subprocess.Popen[str], location: Path
):
    """It may until the holder dies; another writer's lock is not its own."""
    store = location / "a.zarr"
    token = lock_token(store)
    assert token is not None
    check = delegated_lock(store, token)
    check()
    holder.kill()
    holder.wait()
    for _ in range(2):
        with pytest.raises(StoreError, match="does not hold the store's lock any more"):
            check()
    with writer_lock(store):
        assert lock_token(store) not in (None, token)
        with pytest.raises(StoreError, match="does not hold the store's lock any more"):
            check()
    assert lock_token(store) is None


def test_no_lock_is_no_right(tmp_path: Path):
    """A task without a token may not write, even where nobody holds a lock."""
    with pytest.raises(StoreError, match="run the command again"):
        delegated_lock(tmp_path / "a.zarr", None)()


def test_labelling_stops_where_the_right_to_write_ends(tmp_path: Path, tiny_project: Any):
    """Shards whose check passed are committed, and no other."""
    tiny_project.write_project(tmp_path, 24)
    project = load_project(tmp_path / "project.yaml")
    update = update_manifest(project)
    manifest, space = update.manifest, update.label_space
    spec = resolve_teacher(project, project.teachers[0], space, manifest)
    store = open_or_create(project, store_schema(project, spec, space, manifest, TRAIN), space)
    work = missing_work(project, store.schema, spec, manifest)
    assert sum(len(item.views) for item in work) > 4
    asked: list[int] = []

    def check() -> None:
        asked.append(1)
        if len(asked) > 3:
            raise StoreError("the lock is lost")

    with pytest.raises(StoreError, match="the lock is lost"):
        label_shards(project, spec, manifest, store, work, check=check)
    assert np.count_nonzero(store.commits[:, :, 0]) == 3


def test_a_task_that_runs_again_does_what_is_missing_of_its_own():
    """Neither what is committed of its group, nor what is missing of another's."""
    group = [ShardWork(shard=2, views=(0, 1), rows=5), ShardWork(shard=3, views=(0, 1), rows=5)]
    missing = [
        ShardWork(shard=1, views=(0, 1), rows=5),
        ShardWork(shard=3, views=(1, 2), rows=5),
        ShardWork(shard=4, views=(0,), rows=5),
    ]
    assert still_missing(group, missing) == [ShardWork(shard=3, views=(1,), rows=5)]
    assert still_missing(group, []) == []
