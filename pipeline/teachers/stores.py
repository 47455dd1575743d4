"""A teacher's stores: what they must say of themselves, and what is missing in them.

Imports no torch, so that `plan` and the flows are quick.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.config import Project
from pipeline.data import load_label_space, load_manifest
from pipeline.data.manifest_files import has_manifest
from pipeline.data.routing import retired_rows, routed_rows, split_labels, split_recipe
from pipeline.store import SoftLabelStore, create_soft_labels, open_soft_labels, shard_layout
from pipeline.store.coverage import missing_labels
from pipeline.store.opening import has_store
from pipeline.store.published import SPLIT_NAMES
from pipeline.teachers.feature_stores import (
    feature_parts,
    feature_path,
    has_features,
    open_feature_store,
    pairs_of_labels,
)
from pipeline.teachers.spec import TeacherSpec, resolve_teachers
from pipeline.workspace import Workspace
from storage_schemas.label_space import LabelSpace
from storage_schemas.manifest import TEST, TRAIN, Manifest
from storage_schemas.soft_label_schema import SOFT_LABEL_VERSION, SoftLabelSchema


@dataclass(frozen=True, kw_only=True)
class ShardWork:
    """What is missing of one shard: some of its views.

    Attributes:
        shard: Index of the row range.
        views: Ascending views without a valid commit record, of labels or of features.
        rows: How many rows of the shard this teacher labels.
        only_features: Those of the views whose labels are there, and some features are not.
    """

    shard: int
    views: tuple[int, ...]
    rows: int
    only_features: tuple[int, ...] = ()

    @property
    def label_views(self) -> tuple[int, ...]:
        """Views whose labels are missing."""
        return tuple(view for view in self.views if view not in self.only_features)

    @property
    def labels(self) -> int:
        """Answers of the teacher: each gives a label, features, or both."""
        return self.rows * len(self.views)


def store_schema(
    project: Project,
    spec: TeacherSpec,
    space: LabelSpace,
    manifest: Manifest,
    split: int,
    *,
    weights: str | None = None,
) -> SoftLabelSchema:
    """Return what a teacher's store for a split must say of itself.

    Args:
        project: Its label settings and recipe.
        spec: The teacher.
        space: All classes.
        manifest: All rows.
        split: `TRAIN` or `TEST`.
        weights: Stands for the digest of weights that are not there yet, to plan with.

    Raises:
        ConfigError: If the teacher's weights are not there.
    """
    labels, recipe = project.labels, split_recipe(project, split)
    num_classes = len(spec.label_map)
    shard_rows, chunk_rows = shard_layout(len(manifest), labels.shard_rows, labels.chunk_rows)
    kept = split_labels(project, split, num_classes)
    parts = {
        "version": SOFT_LABEL_VERSION,
        "teacher": spec.name,
        "weights": weights or spec.weights_digest(),
        "builder": spec.config.builder,
        "builder_args": spec.config.builder_args,
        "input": spec.config.input.model_dump(mode="json"),
        "classes": spec.label_map.digest,
        "routing": spec.config.routing,
        "recipe": recipe.digest,
        "split": SPLIT_NAMES[split],
        "k": kept["k"],
        "activation": labels.activation,
        "temperatures": list(labels.temperatures),
        "precision": labels.precision,
        # Fingerprints of top_k stores are older than selections.
        **({"selection": kept["selection"]} if kept["selection"] != "top_k" else {}),
        **({"top_p": kept["top_p"]} if kept["top_p"] is not None else {}),
        "manifest": manifest.chains[0],
    }
    return SoftLabelSchema(
        teacher=spec.name,
        num_rows=len(manifest),
        num_views=recipe.count,
        num_classes=num_classes,
        **kept,
        shard_rows=shard_rows,
        chunk_rows=chunk_rows,
        classes=spec.label_map.names,
        global_ids=tuple(int(i) for i in spec.label_map.global_ids),
        label_space_digest=space.digest,
        manifest_chain=manifest.digest,
        manifest_rows=len(manifest),
        split=SPLIT_NAMES[split],
        recipe=recipe.model_dump(mode="json"),
        fingerprint_parts=parts,
    )


def store_path(project: Project, schema: SoftLabelSchema) -> Path:
    """Return where a store with this schema lies."""
    return Workspace(project.workspace).labels(schema.teacher, schema.fingerprint)


def current_stores(project: Project) -> frozenset[Path]:
    """Return the stores that labelling would write now, whether they are there or not.

    There is none before images are listed, and none of a specialist that is not trained.

    Raises:
        ConcentrateError: If the project file does not fit its data; then nothing can be said.
    """
    if not has_manifest(project.workspace):
        return frozenset()
    manifest, space = load_manifest(project.workspace), load_label_space(project.workspace)
    ready = [
        spec
        for spec in resolve_teachers(project, space, manifest)
        if spec.is_ready or spec.folder is None
    ]
    labels = {
        store_path(project, store_schema(project, spec, space, manifest, split))
        for spec in ready
        for split in (TRAIN, TEST)
    }
    features = {
        feature_path(project, spec.name, feature_parts(project, spec, manifest))
        for spec in ready
        if has_features(spec, manifest, TRAIN)
    }
    return frozenset(labels | features)


def open_or_create(project: Project, schema: SoftLabelSchema, space: LabelSpace) -> SoftLabelStore:
    """Open a teacher's store, grown to the manifest; create it when there is none.

    Raises:
        SchemaMismatchError: If what lies there is another store; lists every field.
    """
    path = store_path(project, schema)
    if not has_store(path):
        return create_soft_labels(path, schema)
    store = open_soft_labels(path, space=space, expected=schema)
    store.grow(schema.num_rows)
    return store


def missing_work(
    project: Project, schema: SoftLabelSchema, spec: TeacherSpec, manifest: Manifest
) -> list[ShardWork]:
    """Return what is missing of a teacher's labels and features, by shard of its label store.

    All of it where there is no store.
    """
    split = SPLIT_NAMES.index(str(schema.split))
    rows = routed_rows(manifest, split, spec.route)
    path = store_path(project, schema)
    if has_store(path):
        store = open_soft_labels(path, expected=schema)
        pairs = missing_labels(store, rows, retired_rows(manifest, split, spec.route))
        shard_rows = store.schema.shard_rows
    else:
        shard_rows = schema.shard_rows
        pairs = [
            (view, int(shard))
            for view in range(schema.num_views)
            for shard in np.unique(rows // shard_rows)
        ]
    counts = np.bincount(rows // shard_rows) if len(rows) else np.zeros(0, np.int64)
    labels = set(pairs)
    if has_features(spec, manifest, split):
        weights = str(schema.fingerprint_parts["weights"])
        own = open_feature_store(project, spec, manifest, shard_rows, weights=weights)
        pairs += pairs_of_labels(own, spec, manifest, shard_rows, schema.num_views)
    return [
        ShardWork(
            shard=shard,
            views=tuple(sorted({view for view, other in pairs if other == shard})),
            rows=int(counts[shard]),
            only_features=tuple(
                sorted({view for view, other in set(pairs) - labels if other == shard})
            ),
        )
        for shard in sorted({shard for _, shard in pairs})
    ]


def work_groups(work: list[ShardWork], labels_per_group: int) -> list[list[ShardWork]]:
    """Cut work into groups of about that many labels, whole shards each: one task a group."""
    groups: list[list[ShardWork]] = []
    size = labels_per_group
    for item in work:
        if size >= labels_per_group:
            groups.append([])
            size = 0
        groups[-1].append(item)
        size += item.labels
    return groups


def label_bytes(schema: SoftLabelSchema, labels: int) -> int:
    """Return the bytes that this many labels take before compression: an upper bound."""
    return labels * schema.label_bytes
