"""The tasks that label: a group of whole shards each, here or on the workers of a Dask cluster.

Coarse enough that Prefect's cost does not count. A task is given its own shards, and writes them
under the lock that its flow holds; what of them is missing is read from the store's own commit
records, so a task that runs again repeats nothing, and no result is cached (DESIGN invariant 3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from prefect import Task, task
from prefect.cache_policies import NO_CACHE

from flows.artifacts import progress_artifact
from flows.gpu import gpu_slot
from flows.outcomes import RETRIES
from flows.progress import bar
from flows.project import Loaded, reload
from pipeline.config import Project
from pipeline.store import open_soft_labels
from pipeline.store.lock import delegated_lock
from pipeline.store.published import SPLIT_NAMES
from pipeline.teachers.spec import TeacherSpec, resolve_teacher
from pipeline.teachers.stores import (
    ShardWork,
    missing_work,
    open_or_create,
    still_missing,
    store_path,
    store_schema,
    work_groups,
)
from storage_schemas.manifest import TRAIN

LABELS_PER_TASK = 1 << 18
TASKS_PER_WORKER = 2  # of a cluster: enough that none waits long for the last


def part_name(work: Sequence[ShardWork]) -> str:
    """Return which views and shards a task writes, as part of its name: `v0-v3/s0-s11`."""
    views = sorted({view for item in work for view in item.views})
    shards = [item.shard for item in work]
    return f"{_span('v', views[0], views[-1])}/{_span('s', shards[0], shards[-1])}"


def _span(letter: str, first: int, last: int) -> str:
    return f"{letter}{first}" if first == last else f"{letter}{first}-{letter}{last}"


def named_teacher(loaded: Loaded, teacher: str) -> TeacherSpec:
    """Return one teacher of a project, resolved."""
    config = loaded.project.teacher(teacher)
    return resolve_teacher(loaded.project, config, loaded.space, loaded.manifest)


@contextmanager
def _told(
    project: Project, topic: str, part: str, total: int | None, *artifact: str
) -> Iterator[Callable[[int], None]]:
    """Yield what a task calls with each count of labels: a bar here, or word to the flow."""
    if project.runtime.runner == "dask":
        from pipeline.cluster import teller

        yield teller(_topic(project, topic), part)
        return
    follow = progress_artifact(f"{topic}: {part}", *artifact) if artifact else None
    with bar(topic, total, follow) as line:
        yield line.advance


def _topic(project: Project, topic: str) -> str:
    return f"{project.workspace}: {topic}"


def run_tasks(
    task: Task[..., Any],
    calls: list[dict[str, Any]],
    project: Project,
    topic: str,
    total: int | None,
    *artifact: str,
) -> list[Any]:
    """Run a task for each call, one after the other here or side by side on the cluster."""
    if project.runtime.runner == "threads" or not calls:
        return [task(**call) for call in calls]
    from flows.side_by_side import run_side_by_side

    follow = progress_artifact(topic, *artifact) if artifact else None
    with bar(topic, total, follow) as line:
        done = run_side_by_side(task, calls, project, _topic(project, topic), line)
        line.set(total or 0)
    return done


def task_groups(project: Project, work: list[ShardWork]) -> list[list[ShardWork]]:
    """Return the work of each task: on a cluster, smaller where that keeps all workers busy."""
    if project.runtime.runner == "threads" or not work:
        return work_groups(work, LABELS_PER_TASK)
    from flows.side_by_side import num_workers

    even = -(-sum(item.labels for item in work) // (TASKS_PER_WORKER * num_workers()))
    return work_groups(work, min(LABELS_PER_TASK, even))


@task(
    cache_policy=NO_CACHE, task_run_name="label/{teacher}/{split}/{part}", tags=["label"], **RETRIES
)
def label_group(
    teacher: str,
    split: str,
    part: str,
    group: list[ShardWork],
    lock: str | None,
    config: str,
    overrides: list[str],
) -> dict[str, Any]:
    """Label what is missing of a group of whole shards, and commit each of them.

    Run again, after an error or on another worker, it repeats no shard.

    Args:
        teacher: Its name in the project file.
        split: train or test.
        part: Names the run.
        group: Shards and views, of which no other task writes any.
        lock: Token of the store's writer lock, which the flow holds.
        config: Path of the project file.
        overrides: Settings that replace those of the file.
    """
    from pipeline.teachers.labelling import label_shards

    loaded = reload(config, overrides)
    project, manifest, space = loaded.project, loaded.manifest, loaded.space
    spec = named_teacher(loaded, teacher)
    schema = store_schema(project, spec, space, manifest, SPLIT_NAMES.index(split))
    store = open_soft_labels(store_path(project, schema), space=space, expected=schema)
    work = still_missing(group, missing_work(project, schema, spec, manifest))
    check = delegated_lock(store.path, lock)
    total = sum(item.labels for item in group)
    told = _told(project, labels_of(teacher, split), part, total, "labelling", teacher, split)
    with gpu_slot(project), told as report:
        counts = label_shards(project, spec, manifest, store, work, report=report, check=check)
    return {
        "teacher": teacher,
        "split": split,
        "part": part,
        "shards": sum(len(item.views) for item in group),
        "labels": total,
        "seconds": round(counts.seconds, 3),
        "labels_per_second": round(counts.labels / max(counts.seconds, 1e-9), 1),
    }


def labels_of(teacher: str, split: str) -> str:
    """Return what the progress of labelling is called."""
    return f"labels {teacher}/{split}"


@task(cache_policy=NO_CACHE, task_run_name="exactness/{teacher}", tags=["label"], **RETRIES)
def measure_teacher(teacher: str, config: str, overrides: list[str]) -> dict[str, Any] | None:
    """Record what the labels of a teacher lose, from a sample that is labelled densely."""
    from pipeline.teachers.exactness import record_exactness

    loaded = reload(config, overrides)
    project, manifest = loaded.project, loaded.manifest
    spec = named_teacher(loaded, teacher)
    schema = store_schema(project, spec, loaded.space, manifest, TRAIN)
    with gpu_slot(project), _told(project, f"exactness {teacher}", "sample", None) as report:
        return record_exactness(project, spec, manifest, schema, report=report)


@task(cache_policy=NO_CACHE, task_run_name="features/{teacher}", tags=["label"], **RETRIES)
def fit_features(teacher: str, config: str, overrides: list[str]) -> None:
    """Create the store of a teacher's block features, with what must be fitted for it.

    Called, not submitted, so that it runs in the process of the flow: it alone creates stores.
    """
    from pipeline.teachers.feature_creation import open_or_create_features

    loaded = reload(config, overrides)
    project, manifest = loaded.project, loaded.manifest
    spec = named_teacher(loaded, teacher)
    schema = store_schema(project, spec, loaded.space, manifest, TRAIN)
    store = open_or_create(project, schema, loaded.space)
    with gpu_slot(project), bar(f"features of {teacher} fitted") as line:
        open_or_create_features(project, spec, manifest, store, report=line.advance)
