"""`concentrate gc` in a bucket, where nothing can be renamed and readers hold no lock."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.locations import folder_size_and_time, remove
from pipeline.store import garbage, open_soft_labels
from pipeline.store.lock import writer_lock
from pipeline.store.published import publish
from pipeline.workspace import Workspace
from storage_schemas.errors import StoreError

NEW, OLD = "a" * 16, "b" * 16
Collect = Callable[..., dict[str, tuple[str, str]]]


@pytest.fixture
def stored(bucket: Path, template: Path) -> Workspace:
    """Two stores of one teacher in a bucket; NEW is published."""
    workspace = Workspace(bucket)
    for name in (NEW, OLD):
        for file in template.rglob("*"):
            if file.is_file():
                place = workspace.labels("birds", name) / file.relative_to(template).as_posix()
                place.write_bytes(file.read_bytes())
    publish(workspace, "birds", {"train": NEW, "test": "f" * 16}, {})
    return workspace


def test_a_day_passes_before_removal(
    stored: Workspace, collect: Collect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written today stays, since a reader could not be told; afterwards it goes whole."""
    assert collect(stored)["b.zarr"] == (
        "keep",
        "written less than a day ago; readers of a bucket hold no lock",
    )
    monkeypatch.setattr(garbage, "BUCKET_GRACE_SECONDS", 0.0)
    assert collect(stored) == {
        "a.zarr": ("keep", "published"),
        "b.zarr": ("removed", "nothing refers to it"),
    }
    assert folder_size_and_time(stored.labels("birds", OLD)) == (0, 0.0)
    with pytest.raises(StoreError, match="no soft-label store"):
        open_soft_labels(stored.labels("birds", OLD))
    assert open_soft_labels(stored.labels("birds", NEW)).schema.teacher == "birds"


def test_a_store_that_is_written_stays(
    stored: Workspace, collect: Collect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store whose lock object is held is kept, and its owner named."""
    monkeypatch.setattr(garbage, "BUCKET_GRACE_SECONDS", 0.0)
    with writer_lock(stored.labels("birds", OLD)):
        action, reason = collect(stored)["b.zarr"]
        assert action == "keep"
        assert reason.startswith("being written by process")
    assert collect(stored)["b.zarr"][0] == "removed"


def test_a_removal_that_was_killed_is_finished(stored: Workspace, collect: Collect) -> None:
    """Without its metadata there is no store: what is left of it goes, whenever it was written."""
    remove(stored.labels("birds", OLD) / "zarr.json")
    assert collect(stored)["b.zarr"] == ("removed", "left by a process that died")
    assert folder_size_and_time(stored.labels("birds", OLD)) == (0, 0.0)
