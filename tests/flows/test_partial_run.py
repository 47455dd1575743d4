"""Labelling that stops half way, and the verbs that go on with what there is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from pipeline.store.lock import writer_lock
from pipeline.store.published import published_path
from pipeline.workspace import Workspace
from storage_schemas.errors import TeacherOutputError
from storage_schemas.manifest import TRAIN

Run = Callable[[Path, str], Result]

pytestmark = [
    pytest.mark.flow,
    pytest.mark.filterwarnings("default"),  # Prefect warns at import
]

SMALL = "--set labels.shard_rows=8 --set labels.chunk_rows=8"
PARTIAL = f"{SMALL} --set student.allow_partial=true"


def test_half_labelled_is_enough_when_asked_for(
    project_folder: Path, run_line: Run, prefect_server: None, monkeypatch: pytest.MonkeyPatch
):
    """After a labelling that broke, train is refused, says how to go on, and then does."""
    from flows import label_tasks
    from pipeline.teachers import labelling

    original, calls = labelling.label_shards, []

    def breaking(*arguments: Any, **options: Any) -> Any:
        if len(calls) == 2:
            raise TeacherOutputError("the GPU is gone")
        calls.append(1)
        return original(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(label_tasks, "LABELS_PER_TASK", 1)
        patch.setattr(labelling, "label_shards", breaking)
        broken = run_line(
            project_folder, f"concentrate label project.yaml --teacher letters {SMALL}"
        )
    assert broken.exit_code == 1
    assert "the GPU is gone" in broken.stderr

    refused = run_line(project_folder, f"concentrate train project.yaml {SMALL}")
    assert refused.exit_code == 2
    assert "student.allow_partial" in refused.stderr
    path = published_path(Workspace(project_folder / "work"), "letters", TRAIN)
    assert path is not None
    with writer_lock(path):
        refused = run_line(project_folder, f"concentrate train project.yaml {PARTIAL}")
    assert refused.exit_code == 2
    assert "being written by process" in refused.stderr

    trained = run_line(project_folder, f"concentrate train project.yaml {PARTIAL} --json")
    assert trained.exit_code == 0, trained.output
    assert "labels used of letters: " in trained.stderr
    assert "labels used of shapes: none published" in trained.stderr
    found = json.loads(trained.stdout)
    assert [run["role"] for run in found] == ["student", "control"]
    record = json.loads((Path(found[0]["folder"]) / "student.json").read_text())
    labels, wanted = record["labels"]["letters"]
    assert 0 < labels < wanted
    assert record["labels"]["shapes"] == [0, 0]
    shown = run_line(project_folder, f"concentrate evaluate project.yaml {PARTIAL}")
    assert shown.exit_code == 0, shown.output
    assert run_line(project_folder, f"concentrate report project.yaml {PARTIAL}").exit_code == 0
    page = (project_folder / "work" / "report" / "index.html").read_text()
    assert f"letters {labels} of {wanted}, shapes none" in page
