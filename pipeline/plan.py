"""The plan: what would run, why, and how many bytes it takes. Imports no torch.

In: the state of every stage, read from manifest, weights, commit records and run records alone
(DESIGN invariant 3). Left out: running anything (flows). The plan updates the manifest, since
nothing can be said of images that have not been looked at; it writes nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import Project
from pipeline.data import ManifestUpdate, update_manifest
from pipeline.data.routing import routed_rows
from pipeline.durable_files import free_bytes
from pipeline.reasons import count, label_reason, training_reason
from pipeline.store.opening import has_store, open_soft_labels
from pipeline.store.published import SPLIT_NAMES, open_published, published_path
from pipeline.store.published_features import published_features_path
from pipeline.store.verify import metadata_problems
from pipeline.teachers.feature_stores import has_features, plan_features
from pipeline.teachers.spec import TeacherSpec, resolve_teachers
from pipeline.teachers.stores import (
    label_bytes,
    missing_work,
    store_path,
    store_schema,
)
from pipeline.training.runs import (
    evaluation_fingerprint,
    evaluation_path,
    report_is_current,
    stale_reason,
    student_runs,
    training_rows,
)
from pipeline.workspace import Workspace, read_record
from storage_schemas.errors import SchemaMismatchError, StoreError
from storage_schemas.label_space import LabelSpace
from storage_schemas.manifest import TEST, TRAIN, Manifest


@dataclass(frozen=True, kw_only=True)
class PlannedWork:
    """One piece of work that is missing or stale.

    Attributes:
        stage: The verb of the command line that does it.
        target: A teacher or a student.
        reason: Why it is to be done.
        rows: Images it goes over.
        labels: Labels it writes.
        shards: Shards it writes labels or features of.
        bytes: Upper bound of what it adds to the disk, before compression.
        feature_bytes: Of these, bytes of block features.
    """

    stage: str
    target: str
    reason: str
    rows: int = 0
    labels: int = 0
    shards: int = 0
    bytes: int = 0
    feature_bytes: int = 0


_AFTER_STUDENT = (
    PlannedWork(stage="evaluate", target="test rows", reason="after the student above"),
    PlannedWork(stage="report", target="report", reason="after the evaluation"),
)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All work that `concentrate run` would do.

    Attributes:
        work: In order.
        images: Rows in use, by split name.
        no_teacher: Training rows that no teacher labels, by class: the student does not see them.
        quarantined: Files that do not decode.
        free_bytes: Of the workspace's disk; None for a bucket.
    """

    work: tuple[PlannedWork, ...]
    images: dict[str, int] = field(default_factory=dict)
    no_teacher: dict[str, int] = field(default_factory=dict)
    quarantined: int = 0
    free_bytes: int | None = 0

    @property
    def bytes(self) -> int:
        """Upper bound of what all work adds to the disk, before compression."""
        return sum(item.bytes for item in self.work)

    @property
    def fits(self) -> bool:
        """Whether the disk has room for all of it."""
        return self.free_bytes is None or self.bytes <= self.free_bytes

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {**asdict(self), "bytes": self.bytes, "fits": self.fits}


def check_space(workspace: Path, work: Iterable[PlannedWork]) -> None:
    """Refuse work that the disk may not have room for.

    Raises:
        StoreError: Says what is needed, what is free, and where.
    """
    needed, free = sum(item.bytes for item in work), free_bytes(workspace)
    if free is not None and needed > free:
        raise StoreError(
            f"{workspace}: labels and features take at most {needed:,} bytes before compression, "
            f"and {free:,} are free; free some, set another workspace, or start all the same with "
            "--force: what is committed stays when the disk is full"
        )


def plan_specialist(spec: TeacherSpec, manifest: Manifest) -> PlannedWork | None:
    """Return the training that a specialist still needs.

    Raises:
        ConfigError: If its weights are to come from a file that is not there.
    """
    if spec.is_ready:
        return None
    if spec.folder is None:
        spec.weights_digest()  # raises, and says which file
        return None
    return PlannedWork(
        stage="specialists",
        target=spec.name,
        reason=training_reason(spec.folder, spec.training_parts),
        rows=len(manifest.rows(TRAIN, support=spec.label_map.support)),
    )


def plan_labels(
    project: Project, spec: TeacherSpec, space: LabelSpace, manifest: Manifest
) -> list[PlannedWork]:
    """Return the labelling that a teacher still needs, one entry per split."""
    found = []
    for split in (TRAIN, TEST):
        weights = None if spec.is_ready else "not trained yet"
        schema = store_schema(project, spec, space, manifest, split, weights=weights)
        published = published_path(Workspace(project.workspace), spec.name, split)
        current = store_path(project, schema)
        features, features_current = None, True
        try:
            work = missing_work(project, schema, spec, manifest)
            store = open_soft_labels(current) if has_store(current) else None
            damage = metadata_problems(store) if store is not None else []
            if has_features(spec, manifest, split):
                rows_of_shard = (schema if store is None else store.schema).shard_rows
                features = plan_features(project, spec, manifest, rows_of_shard, weights=weights)
                damage += features.damage
        except (StoreError, SchemaMismatchError) as error:
            work, damage = [], [" ".join(str(error).split())]
        if split == TRAIN:
            found_features = published_features_path(Workspace(project.workspace), spec.name)
            features_current = found_features == (features.path if features else None)
        if not work and not damage and published == current and features_current:
            continue
        reason = "after the specialist is trained"
        if spec.is_ready and damage and not work:
            reason = damage[0]
        elif spec.is_ready:
            missing = [(view, item.shard) for item in work for view in item.label_views]
            rows = routed_rows(manifest, split, spec.route)
            reason = label_reason(current, published, schema, missing, rows)
            if work and not missing:
                reason = "features that are asked for are not stored"
            if features is not None and features.fit_rows:
                reason += f"; features are fitted on {count(features.fit_rows, 'row')} first"
        labels = sum(item.rows * len(item.label_views) for item in work)
        feature_bytes = 0 if features is None else features.bytes
        found.append(
            PlannedWork(
                stage="label",
                target=f"{spec.name}/{SPLIT_NAMES[split]}",
                reason=reason,
                rows=sum(item.rows for item in work),
                labels=labels,
                shards=sum(len(item.views) for item in work),
                bytes=label_bytes(schema, labels) + feature_bytes,
                feature_bytes=feature_bytes,
            )
        )
    return found


def make_plan(
    project: Project, *, progress: Callable[[int, int], None] | None = None
) -> tuple[Plan, ManifestUpdate]:
    """Scan the images and return what is missing or stale.

    Raises:
        ConcentrateError: If the project file does not fit its data.
    """
    update = update_manifest(project, progress=progress)
    manifest, space = update.manifest, update.label_space
    specs = resolve_teachers(project, space, manifest)
    work: list[PlannedWork] = []
    for spec in specs:
        item = plan_specialist(spec, manifest)
        work += [item] if item else []
    for spec in specs:
        work += plan_labels(project, spec, space, manifest)
    work += _plan_students(project, space, manifest, labels_change=bool(work))
    plan = Plan(
        work=tuple(work),
        images={SPLIT_NAMES[split]: len(manifest.rows(split)) for split in (TRAIN, TEST)},
        no_teacher=_without_teacher(specs, space, manifest),
        quarantined=update.quarantined,
        free_bytes=free_bytes(project.workspace),
    )
    return plan, update


def _without_teacher(
    specs: Sequence[TeacherSpec], space: LabelSpace, manifest: Manifest
) -> dict[str, int]:
    routed = np.logical_or.reduce([spec.route for spec in specs])
    labels = manifest.labels[manifest.rows(TRAIN)]
    found, counts = np.unique(labels[~routed[labels]], return_counts=True)
    names = [space.classes[label] if label >= 0 else "no class" for label in found]
    return dict(zip(names, counts.tolist(), strict=True))


def _plan_students(
    project: Project, space: LabelSpace, manifest: Manifest, *, labels_change: bool
) -> list[PlannedWork]:
    if labels_change:
        targets = [project.student.name, *(["control"] if project.student.control else [])]
        work = [
            PlannedWork(stage="train", target=target, reason="after the labels above")
            for target in targets
        ]
        return [*work, *_AFTER_STUDENT]
    published = open_published(project, space, manifest, TRAIN)
    runs = student_runs(project, space, manifest, published)
    work = [
        PlannedWork(
            stage="train",
            target=run.folder.parent.name,
            reason=reason,
            rows=len(training_rows(manifest, published)),
        )
        for run in runs
        if (reason := stale_reason(run)) is not None
    ]
    if work:
        return [*work, *_AFTER_STUDENT]
    tests = open_published(project, space, manifest, TEST)
    digest = evaluation_fingerprint(runs, manifest, tests, project.report.samples)
    evaluated = (read_record(evaluation_path(runs[0])) or {}).get("fingerprint") == digest
    if not evaluated:
        rows = len(manifest.rows(TEST))
        reason = "this student, or these test images, are not evaluated yet"
        work = [PlannedWork(stage="evaluate", target="test rows", reason=reason, rows=rows)]
    if not evaluated or not report_is_current(Workspace(project.workspace), digest):
        work.append(PlannedWork(stage="report", target="report", reason="the newest is of others"))
    return work
