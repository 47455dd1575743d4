"""The flow that checks the published stores against their commit records."""

from __future__ import annotations

from typing import Any

from prefect import flow, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from flows.outcomes import HOOKS, RETRIES
from flows.parameters import ConfigPath, Depth, Overrides, TeacherName, named
from flows.progress import bar
from flows.project import load
from pipeline.store import open_soft_labels, take_out_of_use, verify_store
from pipeline.store.lock import writer_lock
from pipeline.store.published import SPLIT_NAMES, published_path
from pipeline.workspace import Workspace
from storage_schemas.errors import CheckFailedError, ConcentrateError
from storage_schemas.manifest import TEST, TRAIN


@task(cache_policy=NO_CACHE, task_run_name="verify/{teacher}/{split}", tags=["verify"], **RETRIES)
def verify_one(teacher: str, split: str, path: str | None, depth: Depth) -> dict[str, Any]:
    """Check one store; returns its problems instead of raising, so that all are checked.

    Damaged shards are taken out of use, so that `concentrate label` writes exactly them again.
    """
    from pathlib import Path

    found: dict[str, Any] = {"teacher": teacher, "split": split, "labels": 0, "problems": []}
    if path is None:
        return found | {"problems": ["nothing published; run `concentrate label`"]}
    try:
        store = open_soft_labels(Path(path))
        found["labels"] = int(store.commits[:, :, 0].sum())
        found["problems"] = verify_store(store, depth)
        if found["problems"]:  # a sound store is not written, so it may be read-only
            with writer_lock(store.path):
                found["problems"] = take_out_of_use(store, depth)
    except ConcentrateError as error:
        found["problems"] = [str(error)]
    return found


@flow(name="verify-stores", flow_run_name=named("verify"), log_prints=False, **HOOKS)
def verify_stores(
    config: ConfigPath,
    overrides: Overrides = None,
    teacher: TeacherName = None,
    depth: Depth = "quick",
) -> list[dict[str, Any]]:
    """Check the published stores of a project.

    Args:
        config: Path of the project file.
        overrides: `key.path=value` settings that replace those of the file.
        teacher: Only this one.
        depth: quick: commit records, sizes and metadata. full: every byte against its digest.

    Raises:
        CheckFailedError: If a store is damaged; lists every problem of every store.
    """
    loaded = load(config, overrides or [])
    if teacher is not None:
        loaded.project.teacher(teacher)
    workspace = Workspace(loaded.project.workspace)
    names = [t.name for t in loaded.project.teachers if teacher in (None, t.name)]
    found = []
    with bar(f"stores verified ({depth})", 2 * len(names)) as line:
        for name in names:
            for split in (TRAIN, TEST):
                path = published_path(workspace, name, split)
                found.append(
                    verify_one(name, SPLIT_NAMES[split], str(path) if path else None, depth)
                )
                line.advance()
    create_table_artifact(
        [{**item, "problems": len(item["problems"])} for item in found], key="verify"
    )
    problems = [
        f"{item['teacher']}/{item['split']}: {problem}"
        for item in found
        for problem in item["problems"]
    ]
    if problems:
        raise CheckFailedError(
            "label stores (shards named are out of use; `concentrate label` writes them again)",
            problems,
        )
    return found
