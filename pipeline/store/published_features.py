"""Published block features of a teacher: where they are, whether they are the ones asked for.

In: reading the name of a published store, opening and verifying the features that are current.
Left out: labels, and all teachers together (published.py). Features are of training rows only.
"""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.config import Project, TeacherConfig
from pipeline.store.binding import feature_differences
from pipeline.store.block_feature_store import BlockFeatureStore, open_block_features
from pipeline.store.lock import writer_lock
from pipeline.store.row_reader import Rows
from pipeline.store.verify import Depth, take_out_of_use, verify_store
from pipeline.workspace import Workspace, read_record
from storage_schemas.errors import MissingLabelError, SchemaMismatchError, StoreError
from storage_schemas.fingerprint import FINGERPRINT_DIGITS
from storage_schemas.manifest import TRAIN, Manifest

_FINGERPRINT = re.compile(f"[0-9a-f]{{{FINGERPRINT_DIGITS}}}")


def published_fingerprint(workspace: Workspace, teacher: str, split: str, kind: str) -> str | None:
    """Return the name of a teacher's current store, or None before it is published.

    Args:
        workspace: Of the project.
        teacher: Its name.
        split: Its name.
        kind: Member of the record: stores, which are of labels, or features.

    Raises:
        StoreError: If the record names something that is no store.
    """
    path = workspace.published(teacher)
    stores = (read_record(path) or {}).get(kind, {})
    found = stores.get(split) if isinstance(stores, dict) else stores
    if found is None:
        return None
    if not isinstance(found, str) or not _FINGERPRINT.fullmatch(found):
        raise StoreError(
            f"{path}: a store must be named by {FINGERPRINT_DIGITS} hex digits, got {found!r:.80}; "
            "delete the file and run `concentrate label`"
        )
    return found


def published_features_path(workspace: Workspace, teacher: str) -> Path | None:
    """Return the path of a teacher's current features, or None where there are none.

    Raises:
        StoreError: If the record names something that is no store of this teacher.
    """
    found = published_fingerprint(workspace, teacher, "train", "features")
    return None if found is None else workspace.features(teacher, found)


def open_published_features(
    project: Project, config: TeacherConfig, manifest: Manifest, cache_bytes: int
) -> BlockFeatureStore:
    """Open the current features of one teacher's training rows.

    Args:
        project: Its recipe is what they must have.
        config: The teacher.
        manifest: All rows.
        cache_bytes: Memory for features, shared by all teachers that have some.

    Raises:
        MissingLabelError: If none are published.
        SchemaMismatchError: If they are not those of the project file; lists every field.
    """
    path = published_features_path(Workspace(project.workspace), config.name)
    if path is None:
        raise MissingLabelError(
            f"no block features of {config.name} are published; run `concentrate label`"
        )
    owners = sum(bool(teacher.features) for teacher in project.teachers)
    store = open_block_features(path, cache_bytes=cache_bytes // owners)
    problems = feature_differences(project, config, manifest, TRAIN, store.schema)
    if problems:
        raise SchemaMismatchError(str(path), problems)
    return store


def verify_published_features(
    project: Project, teacher: str, depth: Depth, rows: Rows | None
) -> list[str]:
    """Return everything that is wrong with a teacher's current features.

    Damaged shards are taken out of use, so that `concentrate label` writes exactly them again.

    Args:
        project: Its project.
        teacher: Its name.
        depth: See `verify_store`.
        rows: See `verify_store`.

    Raises:
        StoreError: If they cannot be opened, or another process writes them.
        CorruptLabelError: If metadata was altered.
    """
    path = published_features_path(Workspace(project.workspace), teacher)
    if path is None:
        asked = bool(project.teacher(teacher).features) and rows is not None and len(rows) > 0
        return ["no block features published; run `concentrate label`"] if asked else []
    store = open_block_features(path)
    problems = verify_store(store, depth, rows)
    if problems:  # a sound store is not written, so it may be read-only
        with writer_lock(store.path):
            take_out_of_use(store, depth)
    return problems
