"""Published stores: which store of each teacher is the current one, and all of them together.

In: the record that the label flow leaves when a store is complete, and opening the stores of all
teachers for a student, with every reason to refuse listed at once. Left out: teachers. A student
is trained from what is found here, on a machine that may have no teacher at all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.config import Project, TeacherConfig
from pipeline.data.class_lists import label_map_of
from pipeline.data.routing import route, routed_rows, split_recipe
from pipeline.store.opening import open_soft_labels
from pipeline.store.soft_label_store import SoftLabelStore
from pipeline.workspace import Workspace, read_record, write_record
from storage_schemas.errors import MissingLabelError, SchemaMismatchError
from storage_schemas.fingerprint import file_digest
from storage_schemas.label_space import LabelSpace
from storage_schemas.manifest import Manifest
from storage_schemas.soft_label_schema import SoftLabelSchema, class_problems, dict_problems

Rows = npt.NDArray[np.int64]
SPLIT_NAMES = ("train", "test")


@dataclass(frozen=True, kw_only=True)
class PublishedLabels:
    """The current stores of all teachers for one split.

    Attributes:
        names: Teachers, in the order of the project file.
        stores: One per teacher, opened.
        routes: (C + 1, T) which rows each labels; None where there is no store.
    """

    names: tuple[str, ...] = ()
    stores: tuple[SoftLabelStore, ...] = ()
    routes: npt.NDArray[np.bool_] | None = None

    def identity(self) -> list[list[str]]:
        """Return name, fingerprint and digest of all commit records of each store."""
        return [
            [name, store.schema.fingerprint, commits_digest(store)]
            for name, store in zip(self.names, self.stores, strict=True)
        ]

    def held_bytes(self, manifest: Manifest, split: int) -> int:
        """Return the memory that all labels of a split take, as stored."""
        assert self.routes is not None
        total = 0
        for index, store in enumerate(self.stores):
            schema = store.schema
            rows = routed_rows(manifest, split, self.routes[:, index])
            shards = len(np.unique(rows // schema.shard_rows))
            total += shards * schema.shard_rows * schema.num_views * schema.label_bytes
        return total


def commits_digest(store: SoftLabelStore) -> str:
    """Return the sha256 hex digest of a store's commit records up to its last labelled shard."""
    commits = store.commits
    used = np.flatnonzero(commits[:, :, 0].any(axis=0))
    last = int(used[-1]) + 1 if len(used) else 0
    return hashlib.sha256(commits[:, :last].astype("<u4").tobytes()).hexdigest()


def missing_labels(store: SoftLabelStore, rows: Rows) -> list[tuple[int, int]]:
    """Return the (view, shard) pairs in which labels of these rows are still to be written.

    Args:
        store: May be shorter than the manifest.
        rows: Ascending rows that its teacher labels.
    """
    size, shards = store.schema.shard_rows, store.schema.num_shards
    inside = rows[rows < store.schema.num_rows]
    counts = np.bincount(inside // size, minlength=shards)
    missing = set(store.missing_shards(counts, rows=inside))
    for shard in np.unique(rows[rows >= store.schema.num_rows] // size):
        missing.update((view, int(shard)) for view in range(store.schema.num_views))
    return sorted(missing)


def rows_to_label(
    project: Project, space: LabelSpace, manifest: Manifest, store: SoftLabelStore
) -> Rows:
    """Return the ascending rows that a store's teacher labels now."""
    routing = project.teacher(store.schema.teacher).routing
    table = route(store.schema.resolve(space), len(space), routing)
    return routed_rows(manifest, SPLIT_NAMES.index(str(store.schema.split)), table)


def publish(
    workspace: Workspace, teacher: str, fingerprints: Mapping[str, str], cost: Mapping[str, int]
) -> None:
    """Say which stores of a teacher are current.

    Args:
        workspace: Of the project.
        teacher: Its name.
        fingerprints: By split name.
        cost: Parameters and FLOPs of its network, for the comparison with the student.
    """
    record = {"stores": dict(fingerprints), "cost": dict(cost)}
    if read_record(_record(workspace, teacher)) != record:
        write_record(_record(workspace, teacher), record)


def published_cost(workspace: Workspace, teacher: str) -> dict[str, int]:
    """Return parameters and FLOPs of a published teacher; empty before it is published."""
    return dict((read_record(_record(workspace, teacher)) or {}).get("cost", {}))


def published_path(workspace: Workspace, teacher: str, split: int) -> Path | None:
    """Return the path of the current store of a teacher, or None before it is published."""
    record = read_record(_record(workspace, teacher)) or {}
    found = record.get("stores", {}).get(SPLIT_NAMES[split])
    return workspace.labels(teacher, str(found)) if found else None


def _record(workspace: Workspace, teacher: str) -> Path:
    return workspace.root / "labels" / teacher / "published.json"


def open_published(
    project: Project,
    space: LabelSpace,
    manifest: Manifest,
    split: int,
    *,
    cache_bytes: int = 256 << 20,
) -> PublishedLabels:
    """Open the current stores of all teachers of a project.

    Args:
        project: Its teachers, recipe and label settings are what the stores must have.
        space: Into which class names are resolved.
        manifest: Whose rows the stores must label completely.
        split: `TRAIN` or `TEST`.
        cache_bytes: Memory for labels, shared by all stores.

    Raises:
        MissingLabelError: If a store is not published or lacks labels; names every one.
        SchemaMismatchError: If stores were made with other settings; lists every field.
    """
    workspace = Workspace(project.workspace)
    stores: list[SoftLabelStore] = []
    problems: list[str] = []
    absent: list[str] = []
    routes = []
    for config in project.teachers:
        path = published_path(workspace, config.name, split)
        if path is None:
            absent.append(f"{config.name} (nothing published)")
            continue
        try:
            store = open_soft_labels(
                path, space=space, cache_bytes=cache_bytes // len(project.teachers)
            )
        except SchemaMismatchError as error:
            problems += [f"{config.name}: {problem}" for problem in error.problems]
            continue
        found = _differences(project, config, space, manifest, split, store.schema)
        problems += [f"{config.name}: {problem}" for problem in found]
        table = route(store.label_map, len(space), config.routing)
        rows = routed_rows(manifest, split, table)
        missing = missing_labels(store, rows)
        if missing:
            absent.append(f"{config.name} ({len(missing)} shards)")
        stores.append(store)
        routes.append(table)
    if problems:
        raise SchemaMismatchError("published labels; run `concentrate label`", problems)
    if absent:
        raise MissingLabelError(
            f"{SPLIT_NAMES[split]} labels are missing of {', '.join(absent)}; "
            "run `concentrate label`"
        )
    return PublishedLabels(
        names=tuple(config.name for config in project.teachers),
        stores=tuple(stores),
        routes=np.stack(routes, axis=1),
    )


def _differences(
    project: Project,
    config: TeacherConfig,
    space: LabelSpace,
    manifest: Manifest,
    split: int,
    found: SoftLabelSchema,
) -> list[str]:
    """Return one sentence per field in which a store is not the one that the project asks for.

    The teacher's weights are compared where they are: a machine that only trains need not have
    them.
    """
    labels = project.labels
    pairs: dict[str, tuple[Any, Any]] = {
        "k": (min(labels.k, found.num_classes), found.k),
        **{
            field: (getattr(labels, field), getattr(found, field))
            for field in ("activation", "temperatures", "precision")
        },
    }
    problems = [
        f"{field} must be {expected}, got {got}"
        for field, (expected, got) in pairs.items()
        if expected != got
    ]
    problems += class_problems(label_map_of(config, space).names, found.classes)
    recipe = split_recipe(project, split).model_dump(mode="json")
    problems += dict_problems("recipe", recipe, found.recipe)
    teacher: dict[str, Any] = {
        "builder": config.builder,
        "builder_args": config.builder_args,
        "input": config.input.model_dump(mode="json"),
        "routing": config.routing,
    }
    if config.weights is not None and config.weights.is_file():
        teacher["weights"] = file_digest(config.weights)
    said = {name: found.fingerprint_parts.get(name, teacher[name]) for name in teacher}
    problems += dict_problems("teacher", teacher, said)
    if not manifest.has_prefix(found.manifest_chain, found.manifest_rows):
        problems.append(
            f"made for other images: the manifest must begin with the {found.manifest_rows} rows "
            f"of chain {found.manifest_chain[:12]}, and does not"
        )
    return problems
