"""Everything that is missing of one teacher: locked, labelled, published.

In: the order of the steps, for both splits. Left out: how shards are run, which the caller says:
in this process (`label_shards`), or as Prefect tasks (flows).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TypeVar

from pipeline.config import Project
from pipeline.store import SoftLabelStore
from pipeline.store.leftovers import remove_leftovers
from pipeline.store.lock import writer_lock
from pipeline.store.published import SPLIT_NAMES, publish
from pipeline.store.repair import repair_metadata
from pipeline.teachers.labelling import LabelCounts, label_shards, teacher_cost
from pipeline.teachers.spec import TeacherSpec
from pipeline.teachers.stores import (
    ShardWork,
    missing_work,
    open_or_create,
    store_path,
    store_schema,
)
from pipeline.workspace import Workspace
from storage_schemas.label_space import LabelSpace
from storage_schemas.manifest import TEST, TRAIN, Manifest

Done = TypeVar("Done")


def label_and_publish(
    project: Project,
    spec: TeacherSpec,
    space: LabelSpace,
    manifest: Manifest,
    run: Callable[[SoftLabelStore, list[ShardWork]], Done],
) -> dict[int, Done]:
    """Bring both stores of a teacher up to date and say that they are current.

    Damaged metadata is made again first, where enough of a store is left to know what it was.

    Both writer locks are held from before the first store is opened until it is published.

    Args:
        project: Its project.
        spec: The teacher, with weights.
        space: All classes.
        manifest: All rows.
        run: Writes the missing shards of an open store.

    Returns:
        What `run` returned, by split.

    Raises:
        StoreError: If another process writes one of the stores, or it cannot be written.
        TeacherOutputError: As `label_shards`.
    """
    schemas = {
        split: store_schema(project, spec, space, manifest, split) for split in (TRAIN, TEST)
    }
    done = {}
    with ExitStack() as locks:
        for schema in schemas.values():
            path = store_path(project, schema)
            locks.enter_context(writer_lock(path))
            remove_leftovers(path)
            if path.exists():
                repair_metadata(path, schema, manifest.append_ends)
        for split, schema in schemas.items():
            store = open_or_create(project, schema, space)
            done[split] = run(store, missing_work(project, schema, spec, manifest))
        fingerprints = {SPLIT_NAMES[split]: schema.fingerprint for split, schema in schemas.items()}
        publish(Workspace(project.workspace), spec.name, fingerprints, teacher_cost(spec))
    return done


def label_here(
    project: Project, spec: TeacherSpec, space: LabelSpace, manifest: Manifest
) -> dict[int, LabelCounts]:
    """Label in this process what is missing of a teacher, and publish it.

    Returns:
        What was written, by split.

    Raises:
        StoreError: If another process writes one of the stores, or it cannot be written.
        TeacherOutputError: As `label_shards`.
    """
    return label_and_publish(
        project,
        spec,
        space,
        manifest,
        lambda store, work: label_shards(project, spec, manifest, store, work),
    )
