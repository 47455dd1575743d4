"""The flows that run each teacher once and publish its stores.

A subflow per teacher, so that it can be rerun alone; a task per group of whole shards, coarse
enough that Prefect's cost does not count. What is missing is read from the store's own commit
records: no result is cached (DESIGN invariant 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prefect import flow, tags, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from flows.artifacts import artifact_key, progress_artifact
from flows.events import LABELS_PUBLISHED, announce
from flows.gpu import gpu_slot
from flows.outcomes import HOOKS, RETRIES
from flows.parameters import ConfigPath, Overrides, TeacherName, named
from flows.progress import bar
from flows.project import Loaded, load, reload
from pipeline.config.base import Name
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
from storage_schemas.manifest import TRAIN

LABELS_PER_TASK = 1 << 18


def part_name(work: Sequence[ShardWork]) -> str:
    """Return which views and shards a task writes, as part of its name: `v0-v3/s0-s11`."""
    views = sorted({view for item in work for view in item.views})
    shards = [item.shard for item in work]
    return f"{_span('v', views[0], views[-1])}/{_span('s', shards[0], shards[-1])}"


def _span(letter: str, first: int, last: int) -> str:
    return f"{letter}{first}" if first == last else f"{letter}{first}-{letter}{last}"


def _resolve(loaded: Loaded, teacher: str) -> TeacherSpec:
    config = loaded.project.teacher(teacher)
    return resolve_teacher(loaded.project, config, loaded.space, loaded.manifest)


@task(
    cache_policy=NO_CACHE, task_run_name="label/{teacher}/{split}/{part}", tags=["label"], **RETRIES
)
def label_group(
    teacher: str, split: str, part: str, config: str, overrides: list[str]
) -> dict[str, Any]:
    """Label the first group of shards that is still missing, and commit each of them.

    A retry looks anew at what is missing, so it repeats no shard; `part` only names the run.
    """
    from pipeline.teachers.labelling import label_shards

    loaded = reload(config, overrides)
    spec = _resolve(loaded, teacher)
    project, manifest = loaded.project, loaded.manifest
    schema = store_schema(project, spec, loaded.space, manifest, SPLIT_NAMES.index(split))
    store = open_or_create(project, schema, loaded.space)
    work = work_groups(missing_work(project, schema, spec, manifest), LABELS_PER_TASK)[0]
    total = sum(item.labels for item in work)
    follow = progress_artifact(f"labels of {teacher}, {split}: {part}", "labelling", teacher, split)
    with gpu_slot(project), bar(f"labels {teacher}/{split}", total, follow) as line:
        counts = label_shards(project, spec, manifest, store, work, report=line.advance)
    return {
        "teacher": teacher,
        "split": split,
        "part": part,
        "shards": counts.shards,
        "labels": counts.labels,
        "seconds": round(counts.seconds, 3),
        "labels_per_second": round(counts.labels / max(counts.seconds, 1e-9), 1),
    }


@task(cache_policy=NO_CACHE, task_run_name="exactness/{teacher}", tags=["label"], **RETRIES)
def measure_teacher(teacher: str, config: str, overrides: list[str]) -> dict[str, Any] | None:
    """Record what the labels of a teacher lose, from a sample that is labelled densely."""
    from pipeline.teachers.exactness import record_exactness

    loaded = reload(config, overrides)
    spec = _resolve(loaded, teacher)
    schema = store_schema(loaded.project, spec, loaded.space, loaded.manifest, TRAIN)
    with gpu_slot(loaded.project), bar(f"exactness {teacher}") as line:
        return record_exactness(loaded.project, spec, loaded.manifest, schema, report=line.advance)


@task(cache_policy=NO_CACHE, task_run_name="features/{teacher}", tags=["label"], **RETRIES)
def fit_features(teacher: str, config: str, overrides: list[str]) -> None:
    """Create the store of a teacher's block features, with what must be fitted for it."""
    from pipeline.teachers.feature_creation import open_or_create_features

    loaded = reload(config, overrides)
    spec = _resolve(loaded, teacher)
    schema = store_schema(loaded.project, spec, loaded.space, loaded.manifest, TRAIN)
    store = open_or_create(loaded.project, schema, loaded.space)
    with gpu_slot(loaded.project), bar(f"features of {teacher} fitted") as line:
        open_or_create_features(loaded.project, spec, loaded.manifest, store, report=line.advance)


@flow(name="label-teacher", flow_run_name="label/{teacher}", log_prints=False, **HOOKS)
def label_teacher(
    teacher: Name, config: ConfigPath, overrides: Overrides = None
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
        with tags(teacher):
            new = [
                label_group(teacher, str(store.schema.split), part_name(group), config, overrides)
                for group in work_groups(work, LABELS_PER_TASK)
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
        lambda: fit_features(teacher, config, overrides),
    )
    create_table_artifact(stored, key=artifact_key("labels", teacher))
    return done


@flow(name="label-teachers", flow_run_name=named("label"), log_prints=False, **HOOKS)
def label_teachers(
    config: ConfigPath,
    overrides: Overrides = None,
    teacher: TeacherName = None,
    force: bool = False,
) -> list[dict[str, Any]]:
    """Label what is missing of every teacher, or of one, and announce each that is complete.

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
    planned = planned_teachers(loaded, teacher, force)
    for config_ in loaded.project.teachers:
        if teacher not in (None, config_.name):
            continue
        groups = label_teacher(config_.name, config, overrides) if config_.name in planned else []
        labels = sum(group["labels"] for group in groups)
        announce(LABELS_PUBLISHED, config, teacher=config_.name, labels=labels)
        done += groups
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
