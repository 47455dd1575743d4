"""Published stores: which store of each teacher is the current one, and all of them together.

In: the record that the label flow leaves when a store is complete, or when there was no other
that could be used; and opening the stores of all
teachers for a student, with every reason to refuse listed at once. Left out: teachers. A student
is trained from what is found here, on a machine that may have no teacher at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from pipeline.config import Project
from pipeline.data.routing import (
    mix_pools,
    retired_rows,
    route,
    routed_rows,
    split_recipe,
)
from pipeline.store.binding import store_differences
from pipeline.store.block_feature_store import BlockFeatureStore
from pipeline.store.coverage import (
    common_pairs,
    labelled_views,
    shards_without,
)
from pipeline.store.opening import open_soft_labels, read_schema
from pipeline.store.published_features import open_published_features, published_fingerprint
from pipeline.store.published_labels import PublishedLabels
from pipeline.store.row_reader import DEFAULT_CACHE_BYTES, ShardCache
from pipeline.store.soft_label_store import SoftLabelStore
from pipeline.workspace import Workspace, read_record, write_record
from storage_schemas.errors import (
    ConcentrateError,
    MissingLabelError,
    SchemaMismatchError,
)
from storage_schemas.exactness import Exactness
from storage_schemas.label_space import LabelSpace
from storage_schemas.manifest import TRAIN, Manifest

Rows = npt.NDArray[np.int64]
SPLIT_NAMES = ("train", "test")

__all__ = [
    "SPLIT_NAMES",
    "PublishedLabels",
    "has_usable_labels",
    "open_published",
    "publish",
    "published_cost",
    "published_path",
    "read_exactness",
    "rows_to_label",
]


def rows_to_label(
    project: Project, space: LabelSpace, manifest: Manifest, store: SoftLabelStore
) -> Rows:
    """Return the ascending rows that a store's teacher labels now."""
    routing = project.teacher(store.schema.teacher).routing
    table = route(store.schema.resolve(space), len(space), routing)
    return routed_rows(manifest, SPLIT_NAMES.index(str(store.schema.split)), table)


def publish(
    workspace: Workspace,
    teacher: str,
    fingerprints: Mapping[str, str],
    cost: Mapping[str, int],
    features: Mapping[str, str] | None = None,
) -> None:
    """Say which stores of a teacher are current.

    Args:
        workspace: Of the project.
        teacher: Its name.
        fingerprints: By split name.
        cost: Parameters and FLOPs of its network, for the comparison with the student.
        features: Fingerprints of its block features by split name, where it has some.
    """
    record = {"stores": dict(fingerprints), "cost": dict(cost)}
    if features:
        record["features"] = dict(features)
    path = workspace.published(teacher)
    if read_record(path) != record:
        write_record(path, record)


def published_cost(workspace: Workspace, teacher: str) -> dict[str, int]:
    """Return parameters and FLOPs of a published teacher; empty before it is published."""
    found = (read_record(workspace.published(teacher)) or {}).get("cost")
    if not isinstance(found, dict):
        return {}
    return {name: count for name, count in found.items() if isinstance(count, int)}


def read_exactness(workspace: Workspace, teacher: str) -> Exactness | None:
    """Return what a teacher's labels lost, or None when it is not measured or not readable."""
    try:
        return Exactness.model_validate(read_record(workspace.exactness(teacher)))
    except ValidationError:
        return None


def published_path(workspace: Workspace, teacher: str, split: int) -> Path | None:
    """Return the path of the current store of a teacher, or None before it is published.

    Raises:
        StoreError: If the record names something that is no store of this teacher.
    """
    found = published_fingerprint(workspace, teacher, SPLIT_NAMES[split], "stores")
    return None if found is None else workspace.labels(teacher, found)


def has_usable_labels(
    project: Project, space: LabelSpace, manifest: Manifest, teacher: str
) -> bool:
    """Tell whether a teacher's published stores, complete or not, are of the present settings."""
    config = project.teacher(teacher)
    for split in range(len(SPLIT_NAMES)):
        path = published_path(Workspace(project.workspace), teacher, split)
        try:
            if path is None or store_differences(
                project, config, space, manifest, split, read_schema(path)[0]
            ):
                return False
        except ConcentrateError:
            return False
    return True


def open_published(
    project: Project,
    space: LabelSpace,
    manifest: Manifest,
    split: int,
    *,
    cache_bytes: int = DEFAULT_CACHE_BYTES,
) -> PublishedLabels:
    """Open the current stores of all teachers of a project.

    Block features of the training rows are opened where the student's objective reads them; a
    label counts as there only if its features are, too.

    With `student.allow_partial`, labels that are missing are no error: `available` says which
    pairs there are, and teachers of which nothing is published take no part. A view that mixes in
    an image which is gone or has changed since is never available.

    Args:
        project: Its teachers, recipe and label settings are what the stores must have.
        space: Into which class names are resolved.
        manifest: Whose rows the stores must label completely.
        split: `TRAIN` or `TEST`.
        cache_bytes: Memory for labels, shared by all stores, and as much for features.

    Raises:
        MissingLabelError: If a store is not published or lacks labels; names every one.
        SchemaMismatchError: If stores were made with other settings; lists every field.
    """
    workspace = Workspace(project.workspace)
    cache, feature_cache = ShardCache(cache_bytes), ShardCache(cache_bytes)
    stores: dict[str, SoftLabelStore] = {}
    problems: list[str] = []
    absent: list[str] = []
    unpublished: list[str] = []
    routes = []
    labelled: list[tuple[Rows, npt.NDArray[np.bool_]]] = []
    features: dict[int, BlockFeatureStore] = {}
    reads_features = split == TRAIN and "features" in project.student.objective.reads
    for config in project.teachers:
        path = published_path(workspace, config.name, split)
        if path is None:
            unpublished.append(config.name)
            absent.append(f"{config.name} (nothing published)")
            continue
        try:
            store = open_soft_labels(path, space=space, cache=cache)
        except SchemaMismatchError as error:
            problems += [f"{config.name}: {problem}" for problem in error.problems]
            continue
        different = store_differences(project, config, space, manifest, split, store.schema)
        problems += [f"{config.name}: {problem}" for problem in different]
        table = route(store.label_map, len(space), config.routing)
        rows = routed_rows(manifest, split, table)
        found = labelled_views(store, rows, retired_rows(manifest, split, table))
        missing = shards_without(found, rows, store.schema.shard_rows)
        if missing:
            absent.append(f"{config.name} ({len(missing)} shards)")
        if reads_features and config.features and len(rows):
            try:
                own = open_published_features(project, config, manifest, feature_cache)
            except SchemaMismatchError as error:
                problems += [f"{config.name}: {problem}" for problem in error.problems]
            except MissingLabelError:
                absent.append(f"{config.name} (features)")
                found &= False
            else:
                there = labelled_views(own, rows, retired_rows(manifest, split, table))
                missing = shards_without(there, rows, own.schema.shard_rows)
                if missing:
                    absent.append(f"{config.name} ({len(missing)} shards of features)")
                found &= there
                features[len(stores)] = own
        stores[config.name] = store
        routes.append(table)
        labelled.append((rows, found))
    if problems:
        raise SchemaMismatchError("published labels; run `concentrate label`", problems)
    if absent and not (project.student.allow_partial and stores):
        raise MissingLabelError(
            f"{SPLIT_NAMES[split]} labels are missing of {', '.join(absent)}; run `concentrate "
            "label`, or set student.allow_partial to true to use the labels that exist"
        )
    columns = np.stack(routes, axis=1)
    for rows, found in labelled:
        found &= ~_mixed_with_retired(project, manifest, split, columns, rows)
    available = common_pairs(manifest.rows(split), labelled)
    return PublishedLabels(
        names=tuple(stores),
        stores=tuple(stores.values()),
        routes=columns,
        counts=tuple((int(found.sum()), found.size) for _, found in labelled),
        available=available,
        labelled_rows=(
            None
            if available is None
            else tuple(rows[found.all(axis=0)] for rows, found in labelled)
        ),
        unpublished=tuple(unpublished),
        features=features,
    )


def _mixed_with_retired(
    project: Project,
    manifest: Manifest,
    split: int,
    routes: npt.NDArray[np.bool_],
    rows: Rows,
) -> npt.NDArray[np.bool_]:
    """Return which views of rows, (views, n), hold an image that cannot be seen again."""
    recipe = split_recipe(project, split)
    found = np.zeros((recipe.count, len(rows)), np.bool_)
    if recipe.mix is not None and manifest.retired.any():
        pools = mix_pools(manifest, split, routes)
        for view in range(recipe.count):
            partners = recipe.partner_rows(rows, np.full_like(rows, view), pools)
            found[view] = manifest.retired[partners]
    return found
