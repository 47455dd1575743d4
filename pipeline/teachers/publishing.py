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
from pipeline.store.opening import has_store
from pipeline.store.published import SPLIT_NAMES, has_usable_labels, publish, read_exactness
from pipeline.store.repair import has_remains, repair_metadata
from pipeline.teachers.exactness import record_exactness
from pipeline.teachers.feature_creation import open_or_create_features, repair_features
from pipeline.teachers.feature_stores import feature_parts, feature_path, has_features
from pipeline.teachers.labelling import (
    LabelCounts,
    label_shards,
    teacher_cost,
)
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
    measure: Callable[[], object],
    fit: Callable[[], object] | None = None,
) -> dict[int, Done]:
    """Bring the stores of a teacher up to date and say that they are current.

    These are its labels of both splits and, where it is asked for them, the block features of its
    training rows. What these are fitted with is fitted here, before anything is run.

    Damaged metadata is made again first, where enough of a store is left to know what it was.

    All writer locks are held from before the first store is opened until it is published.

    Args:
        project: Its project.
        spec: The teacher, with weights.
        space: All classes.
        manifest: All rows.
        run: Writes the missing shards of an open store.
        measure: Records what the labels lose; called when that is not known of these stores.
        fit: Creates the store of features; called when it is asked for and not there. None: it is
            created here.

    Returns:
        What `run` returned, by split.

    Raises:
        StoreError: If another process writes one of the stores, or it cannot be written.
        TeacherOutputError: As `label_shards`.
    """
    schemas = {
        split: store_schema(project, spec, space, manifest, split) for split in (TRAIN, TEST)
    }
    fingerprints = {SPLIT_NAMES[split]: schema.fingerprint for split, schema in schemas.items()}
    workspace, cost = Workspace(project.workspace), teacher_cost(spec)
    features = None
    if has_features(spec, manifest, TRAIN):
        features = feature_path(project, spec.name, feature_parts(project, spec, manifest))
    named = {} if features is None else {SPLIT_NAMES[TRAIN]: features.stem}
    done = {}
    with ExitStack() as locks:
        checks = []
        for schema in schemas.values():
            path = store_path(project, schema)
            checks.append(locks.enter_context(writer_lock(path)))
            remove_leftovers(path)
            if has_remains(path):
                repair_metadata(path, schema, manifest.append_ends)
        stores = {
            split: open_or_create(project, schema, space) for split, schema in schemas.items()
        }
        if features is not None:
            checks.append(locks.enter_context(writer_lock(features)))
            remove_leftovers(features)
            if has_remains(features):
                repair_features(project, spec, manifest, stores[TRAIN], features)
            if fit is not None and not has_store(features):
                fit()
            open_or_create_features(project, spec, manifest, stores[TRAIN])
        if not has_usable_labels(project, space, manifest, spec.name):
            # For student.allow_partial; a complete store is replaced by a complete one only.
            publish(workspace, spec.name, fingerprints, cost, named)
        for split, store in stores.items():
            done[split] = run(store, missing_work(project, schemas[split], spec, manifest))
            for check in checks:
                check()
        measured = read_exactness(workspace, spec.name)
        # Before the stores are published: a run that is killed here is planned again.
        if measured is None or measured.fingerprint != schemas[TRAIN].fingerprint:
            measure()
        publish(workspace, spec.name, fingerprints, cost, named)
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
        lambda: record_exactness(
            project, spec, manifest, store_schema(project, spec, space, manifest, TRAIN)
        ),
    )
