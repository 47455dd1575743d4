"""Which stores of a real project are referred to, when teachers and settings come and go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.data import update_manifest
from pipeline.store.garbage import find_garbage
from pipeline.teachers.spec import resolve_teachers
from pipeline.teachers.stores import current_stores, open_or_create, store_path, store_schema
from pipeline.workspace import Workspace
from storage_schemas.errors import ConfigError
from storage_schemas.manifest import TRAIN


def listed(growing: Any, keep: int = 0) -> dict[Path, tuple[str, str]]:
    """Store -> (action, reason)."""
    project = growing.project()
    found = find_garbage(
        Workspace(project.workspace),
        current=current_stores(project),
        teachers=[teacher.name for teacher in project.teachers],
        keep=keep,
    )
    return {project.workspace / item.store: (item.action, item.reason) for item in found}


def test_before_anything_ran_there_is_nothing(growing: Any) -> None:
    """No manifest, no stores, no error."""
    assert listed(growing) == {}


def test_a_store_in_progress_is_referred_to_by_the_project_file(growing: Any) -> None:
    """New weights: the old store stays published, the unfinished new one is kept beside it."""
    growing.label()
    before = listed(growing)
    assert set(before.values()) == {("keep", "published")}
    growing.checkpoint("tool", 2, seed=9)
    project = growing.project()
    update = update_manifest(project)
    spec = resolve_teachers(project, update.label_space, update.manifest)[1]
    schema = store_schema(project, spec, update.label_space, update.manifest, TRAIN)
    open_or_create(project, schema, update.label_space)
    new = store_path(project, schema)
    assert listed(growing) == before | {new: ("keep", "of this project file, not complete")}
    growing.checkpoint("tool", 2, seed=1)  # a step back: the new one was never complete
    assert listed(growing) == before | {new: ("remove", "nothing refers to it")}


def test_stores_of_a_teacher_that_left_and_of_one_that_cannot_be_resolved(growing: Any) -> None:
    """The first stay and say so; for the second nothing is listed, since nothing is known."""
    growing.label()
    growing.settings(teachers=[growing.teacher("fruit", ["plum", "apple", "pear"])])
    reasons = {path.parent.name: reason for path, (_, reason) in listed(growing).items()}
    assert reasons == {
        "fruit": "published",
        "tool": "published; its teacher is not in the project file",
    }
    (growing.folder / "fruit.safetensors").unlink()
    with pytest.raises(ConfigError, match="no file at"):
        listed(growing)
