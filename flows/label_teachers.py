"""The flows that run each teacher once and publish its stores.

A subflow per teacher, so that it can be rerun alone; a task per group of whole shards, coarse
enough that Prefect's cost does not count. What is missing is read from the store's own commit
records: no result is cached (DESIGN invariant 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
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
from pipeline.plan import plan_labels
from pipeline.store.lock import writer_lock
from pipeline.store.published import SPLIT_NAMES, publish
from pipeline.teachers.spec import TeacherSpec, resolve_teacher, resolve_teachers
from pipeline.teachers.stores import (
    ShardWork,
    label_bytes,
    missing_work,
    open_or_create,
    store_path,
    store_schema,
    work_groups,
)
from pipeline.workspace import Workspace
from storage_schemas.manifest import TEST, TRAIN

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
    from pipeline.teachers.labelling import teacher_cost

    overrides = overrides or []
    loaded = load(config, overrides)
    project, manifest = loaded.project, loaded.manifest
    spec = _resolve(loaded, teacher)
    schemas = {
        split: store_schema(project, spec, loaded.space, manifest, split) for split in (TRAIN, TEST)
    }
    done: list[dict[str, Any]] = []
    stored = []
    with ExitStack() as locks:
        for schema in schemas.values():
            locks.enter_context(writer_lock(store_path(project, schema)))
        for split, schema in schemas.items():
            store = open_or_create(project, schema, loaded.space)
            work = missing_work(project, schema, spec, manifest)
            with tags(teacher):
                new = [
                    label_group(teacher, SPLIT_NAMES[split], part_name(group), config, overrides)
                    for group in work_groups(work, LABELS_PER_TASK)
                ]
            done += new
            labels = int(store.commits[:, :, 0].sum())
            stored.append(
                {
                    "store": str(store.path.relative_to(project.workspace)),
                    "labels": labels,
                    "at most bytes": label_bytes(schema, labels),
                    "new shards": sum(item["shards"] for item in new),
                    "labels a second": max((item["labels_per_second"] for item in new), default=0),
                }
            )
    fingerprints = {SPLIT_NAMES[split]: schema.fingerprint for split, schema in schemas.items()}
    publish(Workspace(project.workspace), teacher, fingerprints, teacher_cost(spec))
    create_table_artifact(stored, key=artifact_key("labels", teacher))
    return done


@flow(name="label-teachers", flow_run_name=named("label"), log_prints=False, **HOOKS)
def label_teachers(
    config: ConfigPath, overrides: Overrides = None, teacher: TeacherName = None
) -> list[dict[str, Any]]:
    """Label what is missing of every teacher, or of one, and announce each that is complete.

    Args:
        config: Path of the project file.
        overrides: `key.path=value` settings that replace those of the file.
        teacher: Only this one.
    """
    overrides = overrides or []
    loaded = load(config, overrides)
    if teacher is not None:
        loaded.project.teacher(teacher)
    specs = resolve_teachers(loaded.project, loaded.space, loaded.manifest)
    done = []
    for spec in specs:
        if teacher not in (None, spec.name):
            continue
        groups = []
        if plan_labels(loaded.project, spec, loaded.space, loaded.manifest):
            groups = label_teacher(spec.name, config, overrides)
        labels = sum(group["labels"] for group in groups)
        announce(LABELS_PUBLISHED, config, teacher=spec.name, labels=labels)
        done += groups
    return done
