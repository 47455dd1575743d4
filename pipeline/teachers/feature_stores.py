"""A teacher's store of block features: its name, its layout, and what is missing in it.

Imports no torch at the start, so that `plan` and the flows are quick. The shapes of the arrays are
known once the store is there; before that only the network itself can tell (features.py).

Shards of features nest in shards of labels: one run of the teacher over one label shard writes
both, and no feature shard has two writers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.config import Project
from pipeline.data.routing import retired_rows, routed_rows, split_recipe
from pipeline.store import BlockFeatureStore, open_block_features
from pipeline.store.coverage import missing_labels
from pipeline.store.opening import has_store
from pipeline.store.published import SPLIT_NAMES
from pipeline.store.verify import metadata_problems
from pipeline.teachers.spec import TeacherSpec
from pipeline.workspace import Workspace
from storage_schemas.block_feature_schema import BLOCK_FEATURE_VERSION
from storage_schemas.errors import SchemaMismatchError, StoreError
from storage_schemas.fingerprint import fingerprint
from storage_schemas.manifest import TRAIN, Manifest
from storage_schemas.soft_label_schema import SoftLabelSchema, dict_problems

# A shard is what is written, and read, at once.
LARGEST_FEATURE_SHARD_BYTES = 32 * 2**20
LARGEST_FEATURE_CHUNK_BYTES = 2**20

Pairs = list[tuple[int, int]]


def has_features(spec: TeacherSpec, manifest: Manifest, split: int) -> bool:
    """Tell whether features are stored: of training rows, where there are some, if asked for."""
    if split != TRAIN or not spec.config.features:
        return False
    return len(routed_rows(manifest, TRAIN, spec.route)) > 0


def feature_parts(
    project: Project, spec: TeacherSpec, manifest: Manifest, *, weights: str | None = None
) -> dict[str, Any]:
    """Return what identifies a teacher's store of features.

    Args:
        project: Its recipe.
        spec: The teacher.
        manifest: All rows.
        weights: Stands for the digest of weights that are not there yet, to plan with.

    Raises:
        ConfigError: If the teacher's weights are not there.
    """
    return {
        "version": BLOCK_FEATURE_VERSION,
        "teacher": spec.name,
        "weights": weights or spec.weights_digest(),
        "builder": spec.config.builder,
        "builder_args": spec.config.builder_args,
        "input": spec.config.input.model_dump(mode="json"),
        "classes": spec.label_map.digest,
        "routing": spec.config.routing,
        "recipe": split_recipe(project, TRAIN).digest,
        "split": SPLIT_NAMES[TRAIN],
        "features": [feature.parts for feature in spec.config.features],
        "manifest": manifest.chains[0],
    }


def feature_path(project: Project, teacher: str, parts: Mapping[str, Any]) -> Path:
    """Return where the store with these parts lies."""
    return Workspace(project.workspace).features(teacher, fingerprint(parts))


def feature_layout(row_bytes: int, label_shard_rows: int) -> tuple[int, int]:
    """Return (shard_rows, chunk_rows): halves of the label shard until they are small enough.

    Args:
        row_bytes: Of all arrays of one row in one view.
        label_shard_rows: Of the teacher's label store.
    """
    shard_rows = _halved(label_shard_rows, row_bytes, LARGEST_FEATURE_SHARD_BYTES)
    return shard_rows, _halved(shard_rows, row_bytes, LARGEST_FEATURE_CHUNK_BYTES)


def _halved(rows: int, row_bytes: int, largest: int) -> int:
    while rows % 2 == 0 and rows * row_bytes > largest:
        rows //= 2
    return rows


def open_feature_store(
    project: Project,
    spec: TeacherSpec,
    manifest: Manifest,
    label_shard_rows: int,
    *,
    weights: str | None = None,
) -> BlockFeatureStore | None:
    """Open a teacher's store as it is, grown or not; None when there is none.

    Raises:
        SchemaMismatchError: If what lies there is another store, or its shards do not nest in
            those of the labels.
        CorruptLabelError: If its metadata was altered.
    """
    parts = feature_parts(project, spec, manifest, weights=weights)
    path = feature_path(project, spec.name, parts)
    if not has_store(path):
        return None
    store = open_block_features(path)
    problems = dict_problems("fingerprint_parts", parts, store.schema.fingerprint_parts)
    if label_shard_rows % store.schema.shard_rows:
        problems.append(
            f"shard_rows is {store.schema.shard_rows}, and those of the labels must be a multiple "
            f"of it, got {label_shard_rows}; change labels.shard_rows, or delete this store"
        )
    if problems:
        raise SchemaMismatchError(str(path), problems)
    return store


def written_features(
    project: Project, spec: TeacherSpec, manifest: Manifest, labels: SoftLabelSchema
) -> BlockFeatureStore | None:
    """Open the store that features go into when labels are written; None where there are none.

    Raises:
        StoreError: If it is not there: it is made before any shard (feature_creation.py).
        SchemaMismatchError: As `open_feature_store`.
    """
    if not has_features(spec, manifest, SPLIT_NAMES.index(str(labels.split))):
        return None
    found = open_feature_store(project, spec, manifest, labels.shard_rows)
    if found is None:
        raise StoreError(
            f"features of teacher {spec.name!r} have no store; run `concentrate label`"
        )
    return found


def missing_features(store: BlockFeatureStore, spec: TeacherSpec, manifest: Manifest) -> Pairs:
    """Return the (view, shard) pairs of a feature store that are still to be written."""
    rows = routed_rows(manifest, TRAIN, spec.route)
    return missing_labels(store, rows, retired_rows(manifest, TRAIN, spec.route))


def pairs_of_labels(
    store: BlockFeatureStore | None,
    spec: TeacherSpec,
    manifest: Manifest,
    label_shard_rows: int,
    num_views: int,
) -> Pairs:
    """Return the (view, shard) pairs of the label store in which some feature is missing.

    Args:
        store: Of the features; None: all are missing.
        spec: The teacher.
        manifest: All rows.
        label_shard_rows: Of the label store.
        num_views: Of the recipe.
    """
    if store is None:
        shards = np.unique(routed_rows(manifest, TRAIN, spec.route) // label_shard_rows)
        return [(view, int(shard)) for view in range(num_views) for shard in shards]
    ratio = label_shard_rows // store.schema.shard_rows
    found = {(view, shard // ratio) for view, shard in missing_features(store, spec, manifest)}
    return sorted(found)


@dataclass(frozen=True, kw_only=True)
class PlannedFeatures:
    """What is to be done for a teacher's features.

    Attributes:
        path: Where their store lies, or will.
        bytes: Upper bound of what is missing, before compression.
        fit_rows: Rows that the teacher is run on before all others, to fit constants; 0: none.
        damage: What is wrong with the store's metadata.
    """

    path: Path
    bytes: int
    fit_rows: int
    damage: tuple[str, ...] = ()


def plan_features(
    project: Project,
    spec: TeacherSpec,
    manifest: Manifest,
    label_shard_rows: int,
    *,
    weights: str | None = None,
) -> PlannedFeatures:
    """Return what a teacher's features still need.

    Only where there is no store yet must the network be asked how large its blocks are, and torch
    is imported for it.

    Raises:
        ConfigError: If the teacher has no such blocks; lists those it has.
        SchemaMismatchError: As `open_feature_store`.
        CorruptLabelError: As `open_feature_store`.
    """
    path = feature_path(project, spec.name, feature_parts(project, spec, manifest, weights=weights))
    store = open_feature_store(project, spec, manifest, label_shard_rows, weights=weights)
    if store is not None:
        pairs = missing_feature_rows(store, spec, manifest)
        damage = tuple(metadata_problems(store))
        needed = pairs * store.schema.row_bytes
        return PlannedFeatures(path=path, bytes=needed, fit_rows=0, damage=damage)
    from pipeline.teachers.features import planned_row_bytes

    rows = len(routed_rows(manifest, TRAIN, spec.route))
    shares = [config.fit_share for config in spec.config.features if config.is_fitted]
    return PlannedFeatures(
        path=path,
        bytes=rows * split_recipe(project, TRAIN).count * planned_row_bytes(spec),
        fit_rows=math.ceil(max(shares, default=0) * rows),
    )


def missing_feature_rows(store: BlockFeatureStore, spec: TeacherSpec, manifest: Manifest) -> int:
    """Return how many (row, view) pairs are to be written, whole shards of them."""
    rows: npt.NDArray[np.int64] = routed_rows(manifest, TRAIN, spec.route)
    if len(rows) == 0:
        return 0
    counts = np.bincount(rows // store.schema.shard_rows)
    return sum(int(counts[shard]) for _, shard in missing_features(store, spec, manifest))
