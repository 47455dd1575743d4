"""The flows that run each teacher once and publish its stores.

A subflow per teacher, so that it can be rerun alone; a task per group of whole shards, coarse
enough that Prefect's cost does not count. What is missing is read from the store's own commit
records: no result is cached (DESIGN invariant 3).
"""

from __future__ import annotations

from typing import Any

from prefect import flow, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from flows.progress import bar
from flows.project import Loaded, load, reload
from pipeline.durable_files import FORBIDDEN, FULL
from pipeline.locations import storage_errors
from pipeline.plan import check_space, plan_labels
from pipeline.store import SoftLabelStore
from pipeline.store.published import SPLIT_NAMES
from pipeline.teachers.spec import TeacherSpec, resolve_teacher, resolve_teachers
from pipeline.teachers.stores import (
    ShardWork,
    label_bytes,
    missing_work,
    open_or_create,
    store_schema,
    work_groups,
)
from storage_schemas.errors import StoreError
from storage_schemas.manifest import TRAIN

LABELS_PER_TASK = 1 << 18


def _is_io_error(task: Any, task_run: Any, state: Any) -> bool:
    """Retry what may pass by itself: a disk or network that failed; never the user's errors."""
    error = state.result(raise_on_failure=False)
    cause = error.__cause__ if isinstance(error, StoreError) else error
    # A disk that is full or may not be written stays so: the user is told at once.
    lasting = getattr(cause, "errno", None) in (*FULL, *FORBIDDEN)
    return isinstance(cause, storage_errors()) and not lasting


def _resolve(loaded: Loaded, teacher: str) -> TeacherSpec:
    config = loaded.project.teacher(teacher)
    return resolve_teacher(loaded.project, config, loaded.space, loaded.manifest)


@task(
    cache_policy=NO_CACHE,
    retries=2,
    retry_delay_seconds=[1, 10],
    retry_condition_fn=_is_io_error,
    task_run_name="label/{teacher}/{split}/{group}",
)
def label_group(
    teacher: str, split: str, group: int, config: str, overrides: list[str]
) -> dict[str, Any]:
    """Label the first group of shards that is still missing, and commit each of them."""
    from pipeline.teachers.labelling import label_shards

    loaded = reload(config, overrides)
    spec = _resolve(loaded, teacher)
    project, manifest = loaded.project, loaded.manifest
    schema = store_schema(project, spec, loaded.space, manifest, SPLIT_NAMES.index(split))
    store = open_or_create(project, schema, loaded.space)
    work = work_groups(missing_work(project, schema, spec, manifest), LABELS_PER_TASK)[0]
    total = sum(item.labels for item in work)
    with bar(f"labels {teacher}/{split}", total) as line:
        counts = label_shards(project, spec, manifest, store, work, report=line.advance)
    return {
        "teacher": teacher,
        "split": split,
        "group": group,
        "shards": counts.shards,
        "labels": counts.labels,
        "seconds": round(counts.seconds, 3),
        "labels_per_second": round(counts.labels / max(counts.seconds, 1e-9), 1),
    }


@task(
    cache_policy=NO_CACHE,
    retries=2,
    retry_delay_seconds=[1, 10],
    retry_condition_fn=_is_io_error,
    task_run_name="exactness/{teacher}",
)
def measure_teacher(teacher: str, config: str, overrides: list[str]) -> dict[str, Any] | None:
    """Record what the labels of a teacher lose, from a sample that is labelled densely."""
    from pipeline.teachers.exactness import record_exactness

    loaded = reload(config, overrides)
    spec = _resolve(loaded, teacher)
    schema = store_schema(loaded.project, spec, loaded.space, loaded.manifest, TRAIN)
    with bar(f"exactness {teacher}") as line:
        return record_exactness(loaded.project, spec, loaded.manifest, schema, report=line.advance)


@flow(name="label-teacher", flow_run_name="label/{teacher}", log_prints=False)
def label_teacher(
    teacher: str, config: str, overrides: list[str] | None = None
) -> list[dict[str, Any]]:
    """Label what is missing of one teacher and publish its stores.

    Args:
        teacher: Its name in the project file.
        config: Path of the project file.
        overrides: `key.path=value` settings that replace those of the file.
    """
    from pipeline.teachers.publishing import label_and_publish

    overrides = overrides or []
    loaded = load(config, overrides)
    project = loaded.project
    done: list[dict[str, Any]] = []
    stored = []

    def run(store: SoftLabelStore, work: list[ShardWork]) -> None:
        new = [
            label_group(teacher, str(store.schema.split), group, config, overrides)
            for group in range(len(work_groups(work, LABELS_PER_TASK)))
        ]
        labels = int(store.commits[:, :, 0].sum())
        done.extend(new)
        stored.append(
            {
                "store": str(store.path.relative_to(project.workspace)),
                "labels": labels,
                "at most bytes": label_bytes(store.schema, labels),
                "new shards": sum(item["shards"] for item in new),
                "labels a second": max((item["labels_per_second"] for item in new), default=0),
            }
        )

    label_and_publish(
        project,
        _resolve(loaded, teacher),
        loaded.space,
        loaded.manifest,
        run,
        lambda: measure_teacher(teacher, config, overrides),
    )
    create_table_artifact(
        stored, key=f"labels-{teacher.lower().replace('_', '-').replace('.', '-')}"
    )
    return done


@flow(name="label-teachers", log_prints=False)
def label_teachers(
    config: str,
    overrides: list[str] | None = None,
    teacher: str | None = None,
    force: bool = False,
) -> list[dict[str, Any]]:
    """Label what is missing of every teacher, or of one.

    Args:
        config: Path of the project file.
        overrides: `key.path=value` settings that replace those of the file.
        teacher: Only this one.
        force: Start even where the disk may not have room for all labels.

    Raises:
        StoreError: If the disk may not have room, or a store cannot be written.
    """
    overrides = overrides or []
    loaded = load(config, overrides)
    if teacher is not None:
        loaded.project.teacher(teacher)
    done = []
    for name in planned_teachers(loaded, teacher, force):
        done += label_teacher(name, config, overrides)
    return done


def planned_teachers(loaded: Loaded, teacher: str | None, force: bool) -> list[str]:
    """Return the teachers, or the one, that have something to label.

    Raises:
        StoreError: If the disk may not have room for it, unless that is to be tried.
    """
    planned = {
        spec.name: plan_labels(loaded.project, spec, loaded.space, loaded.manifest)
        for spec in resolve_teachers(loaded.project, loaded.space, loaded.manifest)
        if teacher in (None, spec.name)
    }
    if not force:
        work = (item for items in planned.values() for item in items)
        check_space(loaded.project.workspace, work)
    return [name for name, items in planned.items() if items]
