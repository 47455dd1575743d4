"""The flow that trains the student, and its control, from published label stores.

It imports nothing of `pipeline.teachers`: no teacher is loaded here (DESIGN invariant 1).
"""

from __future__ import annotations

from typing import Any

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from flows.artifacts import progress_artifact
from flows.events import STUDENT_TRAINED, announce
from flows.gpu import gpu_slot
from flows.outcomes import HOOKS, RETRIES
from flows.parameters import ConfigPath, Overrides, named
from flows.progress import bar, say
from flows.project import Loaded, load, reload
from pipeline.config import Project
from pipeline.store.lock import current_writer
from pipeline.store.published import PublishedLabels, open_published
from pipeline.training.runs import (
    StudentRun,
    discard_run,
    stale_reason,
    student_runs,
    training_rows,
)
from storage_schemas.errors import StoreError
from storage_schemas.manifest import TRAIN


def published_runs(loaded: Loaded) -> tuple[PublishedLabels, list[StudentRun]]:
    """Return the training labels and the runs of a project."""
    project = loaded.project
    published = open_published(
        project,
        loaded.space,
        loaded.manifest,
        TRAIN,
        cache_bytes=project.student.memory_budget_mb << 20,
    )
    return published, student_runs(project, loaded.space, loaded.manifest, published)


@task(cache_policy=NO_CACHE, task_run_name="train/{role}", tags=["train"], **RETRIES)
def train_one(role: str, config: str, overrides: list[str]) -> dict[str, Any]:
    """Train the student or its control to the end, here or on the ranks that it asks for."""
    from pipeline.training.launch import train_on_ranks
    from pipeline.training.students import train_student as train

    loaded = reload(config, overrides)
    published, runs = published_runs(loaded)
    (run,) = [run for run in runs if run.role == role]
    project, space, manifest = loaded.project, loaded.space, loaded.manifest
    name = run.folder.parent.name
    follow = progress_artifact(f"training of {name}", "training", name)
    with gpu_slot(project, run.config.devices), bar(name, None, follow) as line:
        if run.config.devices == 1:
            record = train(project, run, space, manifest, published, report=line.step)
        else:
            images = len(training_rows(manifest, published))
            record = train_on_ranks(project, run, images, config, overrides, report=line.step)
    kept = ("role", "fingerprint", "steps", "rows", "seconds", "images_per_second")
    return {name: record[name] for name in kept} | {"folder": str(run.folder)}


@flow(name="train-student", flow_run_name=named("train"), log_prints=False, **HOOKS)
def train_student(
    config: ConfigPath, overrides: Overrides = None, again: bool = False
) -> list[dict[str, Any]]:
    """Train the student and its control, each unless it is finished.

    Args:
        config: Path of the project file.
        overrides: `key.path=value` settings that replace those of the file.
        again: Discard finished and interrupted runs of these settings, and train them anew.
    """
    overrides = overrides or []
    loaded = load(config, overrides)
    published, runs = published_runs(loaded)
    if again:
        for run in runs:
            discard_run(run)
    stale = [run.role for run in runs if stale_reason(run) is not None]
    if stale and published.is_partial:
        _say_partial(loaded.project, published)
    done = [train_one(role, config, overrides) for role in stale]
    if done:
        lines = ["| run | steps | images | seconds | images/s |", "| --- | --- | --- | --- | --- |"]
        lines += [
            f"| {item['role']} | {item['steps']} | {item['rows']} | {item['seconds']} "
            f"| {item['images_per_second']} |"
            for item in done
        ]
        create_markdown_artifact("\n".join(lines), key="student")
    announce(STUDENT_TRAINED, config, trained=[item["role"] for item in done])
    return done


def _say_partial(project: Project, published: PublishedLabels) -> None:
    """Say which labels there are, where not all can be used.

    Raises:
        StoreError: If more are being written: student and control would not see the same ones.
    """
    for store in published.stores if project.student.allow_partial else ():
        writer = current_writer(store.path)
        if writer is not None:
            raise StoreError(
                f"{store.path} is {writer}, and student.allow_partial trains on the labels that "
                "exist when it begins; wait until it is done, or end that process"
            )
    for name, (labels, wanted) in published.coverage().items():
        found = f"{labels:,} of {wanted:,} labels (rows x views)" if wanted else "none published"
        say(f"  labels used of {name}: {found}")
