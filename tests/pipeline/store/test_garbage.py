"""`concentrate gc`: what is listed, what is removed, and what never is."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.store import open_soft_labels
from pipeline.store.garbage import find_garbage, remove_garbage
from pipeline.store.published import publish
from pipeline.workspace import Workspace
from storage_schemas.errors import ConfigError, StoreError

Collect = Callable[..., dict[str, tuple[str, str]]]

DIE = """
import os, shutil, signal, sys
from pathlib import Path
from pipeline.store.garbage import find_garbage, remove_garbage
from pipeline.workspace import Workspace

def die(path, *rest):
    files = [file for file in sorted(Path(path).rglob("*")) if file.is_file()]
    for file in files[: len(files) // 2]:
        file.unlink()
    os.kill(os.getpid(), signal.SIGKILL)

shutil.rmtree = die
workspace = Workspace(Path(sys.argv[1]))
remove_garbage(workspace, find_garbage(workspace, current=(), teachers=("birds",), keep=0))
"""


def short(name: str) -> str:
    """Return the name of a store with its sixteen equal digits written once."""
    return re.sub(r"([0-9a-f])\1{15}", r"\1", name)


def store(workspace: Workspace, name: str) -> Path:
    """Path of a store, by the digit of its name."""
    return workspace.labels("birds", name * 16)


def left(workspace: Workspace) -> set[str]:
    """Names in the teacher's folder, digits written once."""
    return {short(path.name) for path in (workspace.root / "labels" / "birds").iterdir()}


def test_listing_changes_nothing(workspace: Workspace) -> None:
    """Every store is listed with what it holds and what would become of it; nothing is touched."""
    before = sorted(workspace.root.rglob("*"))
    found = find_garbage(workspace, current=(), teachers=("birds",), keep=1)
    rows = {short(Path(item.store).name): item for item in found}
    assert {name: (item.action, item.reason) for name, item in rows.items()} == {
        "0.zarr": ("remove", "nothing refers to it"),
        "1.zarr": ("remove", "nothing refers to it"),
        "2.zarr": ("keep", "published"),
        "3.zarr": ("keep", "unused, one of the newest 1"),
        "e.zarr": ("keep", "unused, one of the newest 1"),
    }
    item = rows["1.zarr"]
    assert (item.teacher, item.split, item.labels, item.written) == ("birds", "train", 600, 1000)
    assert item.bytes == sum(
        f.stat().st_size for f in store(workspace, "1").rglob("*") if f.is_file()
    )
    after = [path for path in workspace.root.rglob("*") if path.suffix != ".readers"]
    assert sorted(after) == before


@pytest.mark.parametrize(("keep", "kept"), [(0, "2"), (1, "23"), (2, "123"), (9, "0123")])
def test_keep_counts_the_unused_by_split(
    workspace: Workspace, collect: Collect, keep: int, kept: str
) -> None:
    """Of what nothing refers to, the newest n of each split stay, and the published one always."""
    collect(workspace, keep)
    expected = {f"{name}.zarr" for name in kept} | ({"e.zarr"} if keep else set())
    assert {name for name in left(workspace) if name.endswith(".zarr")} == expected
    assert len(open_soft_labels(store(workspace, "2")).read(np.arange(300), 1).ids[0]) == 300


def test_what_the_project_file_would_write_stays(
    workspace: Workspace,
    collect: Collect,
) -> None:
    """A store that is not published yet, but is the current one, is referred to."""
    found = collect(workspace, current={store(workspace, "0")})
    assert found["0.zarr"] == ("keep", "of this project file, not complete")
    assert {"0.zarr", "2.zarr", "published.json"} <= left(workspace)
    assert "1.zarr" not in left(workspace)


def test_teachers_that_left_the_project_are_listed(
    workspace: Workspace,
    collect: Collect,
) -> None:
    """Their published store stays and says so; a name without labels is an error."""
    found = collect(workspace, teachers=(), only="birds")
    assert found["2.zarr"] == ("keep", "published; its teacher is not in the project file")
    with pytest.raises(ConfigError, match=r"one of \['birds'\], got 'bird'"):
        collect(workspace, only="bird")


def test_a_published_record_that_cannot_be_read_refers_to_everything(
    workspace: Workspace,
    collect: Collect,
) -> None:
    """When it is not known what is published, nothing is removed."""
    (store(workspace, "0").parent / "published.json").write_text("{")
    assert {action for action, _ in collect(workspace).values()} == {"keep"}


def test_what_is_no_store_is_left_alone(
    workspace: Workspace, collect: Collect, tmp_path_factory: Any
) -> None:
    """A folder that does not open and a link to elsewhere are listed, and kept."""
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "x.zarr"
    shutil.copytree(store(workspace, "0"), elsewhere)
    (store(workspace, "0").parent / "link.zarr").symlink_to(elsewhere)
    (store(workspace, "1") / "zarr.json").write_text("{}")
    found = collect(workspace)
    assert found["link.zarr"] == ("keep", "a link")
    assert found["1.zarr"][0] == "keep"
    assert "cannot be read, delete it by hand" in found["1.zarr"][1]
    assert (elsewhere / "zarr.json").exists()


def test_a_removal_that_is_killed_is_finished_by_the_next(
    workspace: Workspace,
    collect: Collect,
) -> None:
    """SIGKILL in the middle leaves no half store under its name, and the next gc ends it."""
    done = subprocess.run(
        [sys.executable, "-c", DIE, str(workspace.root)],
        cwd=Path(__file__).parents[3],
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    (doomed,) = [name for name in left(workspace) if name.endswith(".removed")]
    gone = store(workspace, doomed.removeprefix(".").partition(".")[0])
    with pytest.raises(StoreError, match="no soft-label store"):
        open_soft_labels(gone)
    found = collect(workspace, keep=9)
    assert found[doomed] == ("removed", "removal was interrupted")
    assert doomed not in left(workspace)
    assert len([name for name in left(workspace) if name.endswith(".zarr")]) == 4


def test_leftovers_of_dead_writers_are_removed(
    workspace: Workspace,
    collect: Collect,
) -> None:
    """A store that was never finished is removed; its final place is not touched."""
    partial = store(workspace, "2").with_name(f".{'2' * 16}.zarr.k3_a9zzz.partial")
    shutil.copytree(store(workspace, "2"), partial)
    assert collect(workspace, keep=9)[short(partial.name)] == (
        "removed",
        "left by a process that died",
    )
    assert {"0.zarr", "1.zarr", "2.zarr", "3.zarr"} <= left(workspace)


def test_a_store_published_after_the_listing_stays(workspace: Workspace) -> None:
    """What refers to a store is read again under its lock."""
    found = find_garbage(workspace, current=(), teachers=("birds",), keep=0)
    publish(workspace, "birds", {"train": "1" * 16, "test": "f" * 16}, {})
    rows = {short(Path(item.store).name): item for item in remove_garbage(workspace, found)}
    assert (rows["1.zarr"].action, rows["1.zarr"].reason) == ("keep", "published since")
    json.dumps([item.to_dict() for item in rows.values()])
