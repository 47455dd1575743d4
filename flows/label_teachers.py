"""The flows that run each teacher once and publish its stores.

A subflow per teacher, so that it can be rerun alone; a task per group of whole shards
(label_tasks.py), one after the other here, or side by side on one Dask cluster for all teachers of
a run. The subflow holds the writer locks; its tasks write shards under them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from prefect import flow, tags
from prefect.artifacts import create_table_artifact

from flows.artifacts import artifact_key
from flows.events import LABELS_PUBLISHED, announce
from flows.label_tasks import (
    fit_features,
    label_group,
    labels_of,
    measure_teacher,
    named_teacher,
    part_name,
    run_tasks,
    task_groups,
)
from flows.outcomes import HOOKS
from flows.parameters import ConfigPath, Overrides, TeacherName, named
from flows.project import Loaded, load
from pipeline.config import Project
from pipeline.config.base import Name
from pipeline.plan import check_space, plan_labels
from pipeline.store import SoftLabelStore
from pipeline.store.lock import lock_token
from pipeline.teachers.spec import resolve_teachers
from pipeline.teachers.stores import ShardWork, label_bytes


@flow(name="label-teacher", flow_run_name="label/{teacher}", log_prints=False, **HOOKS)
def label_teacher(
    teacher: Name, config: ConfigPath, overrides: Overrides = None
) -> list[dict[str, Any]]:
    """Label what is missing of one teacher and publish its stores.

    Where the project asks for a Dask cluster, its task runner must be one (`cluster_runner`).

    Args:
        teacher: Its name in the project file.
        config: Path of the project file.
        overrides: `key.path=value` settings that replace those of the file.
    """
    from pipeline.teachers.publishing import label_and_publish

    overrides = overrides or []
    loaded = load(config, overrides)
    project = loaded.project
    settings = {"config": config, "overrides": overrides}
    done: list[dict[str, Any]] = []
    stored = []

    def run(store: SoftLabelStore, work: list[ShardWork]) -> None:
        split, lock = str(store.schema.split), lock_token(store.path)
        calls = [
            {
                "teacher": teacher,
                "split": split,
                "part": part_name(group),
                "group": group,
                "lock": lock,
                **settings,
            }
            for group in task_groups(project, work)
        ]
        total = sum(item.labels for item in work)
        with tags(teacher):
            topic = labels_of(teacher, split)
            new = run_tasks(label_group, calls, project, topic, total, "labelling", teacher, split)
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

    def measure() -> None:
        calls = [{"teacher": teacher, **settings}]
        run_tasks(measure_teacher, calls, project, f"exactness {teacher}", None)

    spec = named_teacher(loaded, teacher)
    label_and_publish(
        project,
        spec,
        loaded.space,
        loaded.manifest,
        run,
        measure,
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
    with labeller(loaded.project, planned) as label:
        for config_ in loaded.project.teachers:
            if teacher not in (None, config_.name):
                continue
            groups = label(config_.name, config, overrides) if config_.name in planned else []
            labels = sum(group["labels"] for group in groups)
            announce(LABELS_PUBLISHED, config, teacher=config_.name, labels=labels)
            done += groups
    return done


@contextmanager
def labeller(
    project: Project, planned: Sequence[str]
) -> Iterator[Callable[..., list[dict[str, Any]]]]:
    """Yield `label_teacher` with the task runner of a project: one cluster for all its teachers.

    Raises:
        ConfigError: If there is no cluster at the address that the project names.
    """
    if project.runtime.runner == "threads" or not planned:
        yield label_teacher
        return
    from flows.side_by_side import cluster_runner

    with cluster_runner(project) as runner:
        yield label_teacher.with_options(task_runner=runner)


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
