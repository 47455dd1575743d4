"""Creating a store, and opening one only if it is what the reader expects.

In: `create_store` and `read_stored` for a store of any kind, `create_soft_labels` and
`open_soft_labels`, the group's metadata. Left out: labels (shards.py), and the handle of block
features (block_feature_store.py).
"""

from __future__ import annotations

import datetime
import shutil
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from pipeline.durable_files import not_written
from pipeline.locations import is_local, location, storage_errors
from pipeline.store.commit import sync
from pipeline.store.documents import (
    GROUP,
    SUBGROUP,
    array_digest,
    document_file,
    read_document,
    replace_document,
    shape_problems,
    write_attributes,
)
from pipeline.store.layout import array_names, create_arrays, group_names, limit_problems
from pipeline.store.row_reader import ShardCache
from pipeline.store.soft_label_store import SoftLabelStore
from pipeline.workspace import inside
from storage_schemas.block_features import BlockFeatureSchema
from storage_schemas.errors import CorruptLabelError, SchemaMismatchError, StoreError
from storage_schemas.label_space import LabelSpace, canonical_digest
from storage_schemas.soft_labels import SoftLabelSchema

Schema = TypeVar("Schema", SoftLabelSchema, BlockFeatureSchema)
Fitted = Mapping[str, npt.NDArray[np.float64]]


def stamped(schema: Schema) -> Schema:
    """Return a schema with library versions and the time filled in where they are empty."""
    filled: dict[str, Any] = {}
    if not schema.library_versions:
        filled["library_versions"] = {name: version(name) for name in ("zarr", "numpy")}
    if not schema.created:
        filled["created"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return schema.model_copy(update=filled)


def create_soft_labels(path: Path, schema: SoftLabelSchema) -> SoftLabelStore:
    """Create an empty store of soft labels (see `create_store`).

    Args:
        path: Where it goes, e.g. labels/<teacher>/<fingerprint>.zarr.
        schema: What it says of itself. Library versions and the time are filled in when empty.

    Raises:
        SchemaMismatchError: If it would be larger than readers take on; lists every limit.
        StoreError: If something is there already, or the place cannot be written.
    """
    path, schema = create_store(path, schema)
    return SoftLabelStore(path, schema, schema.label_map, ShardCache())


def create_store(path: Path, schema: Schema, fitted: Fitted | None = None) -> tuple[Path, Schema]:
    """Create an empty store of any kind, never seen half made.

    On a disk it is made beside the final place and renamed. In a bucket its own metadata are put
    last: without them there is no store, and what a killed creation left is overwritten.

    Args:
        path: Where it goes.
        schema: What it says of itself. Library versions and the time are filled in when empty.
        fitted: Its constant arrays by name.

    Returns:
        Where it is, and its schema with everything filled in.

    Raises:
        SchemaMismatchError: If it would be larger than readers take on; lists every limit.
        StoreError: If something is there already, or the place cannot be written.
    """
    path = location(path)
    problems = limit_problems(schema)
    if problems:
        raise SchemaMismatchError(f"{path} cannot be created", problems)
    schema = stamped(schema)
    try:
        if has_store(path):
            raise StoreError(f"{path} is there already; open it, or delete it to label anew")
        make = _create_on_disk if is_local(path) else _create_in_place
        make(path, schema, fitted or {})
    except storage_errors() as error:
        raise not_written(path, path.parent, error) from error
    return path, schema


def has_store(path: Path) -> bool:
    """Tell whether something is at a store's place; in a bucket, its metadata are what counts."""
    return path.exists() if is_local(path) else (path / "zarr.json").exists()


def holds_features(path: Path) -> bool:
    """Tell whether a store says that it is of block features; it need not be sound."""
    try:
        attributes = read_document(location(path)).get("attributes")
    except ValueError:
        return False
    except storage_errors():
        return False
    return isinstance(attributes, dict) and BlockFeatureSchema.kind in attributes


def _create_in_place(path: Path, schema: Schema, fitted: Fitted) -> None:
    create_arrays(path, schema, fitted)
    for name in group_names(schema):
        replace_document(document_file(path, name), SUBGROUP)
    write_attributes(path, schema)


def _create_on_disk(path: Path, schema: Schema, fitted: Fitted) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    try:
        made.chmod(0o755)
        _create_in_place(made, schema, fitted)
        sync([file for file in made.rglob("*") if file.is_file()], made.parent)
        made.rename(path)
        sync([], path.parent)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _altered(path: Path, what: str, why: str) -> CorruptLabelError:
    return CorruptLabelError(
        f"{path}: metadata of {what} {why}; run `concentrate label`, which makes it again"
    )


def _document(path: Path, noun: str, name: str = "") -> dict[str, Any]:
    what = f"array {name}" if name else "the group"
    inside(path, document_file(path, name))
    try:
        return read_document(path, name)
    except (FileNotFoundError, NotADirectoryError) as error:
        if not name and not (is_local(path) and path.is_dir()):
            raise StoreError(f"no {noun} at {path}; run `concentrate label` first") from None
        raise _altered(path, what, f"cannot be read: {error}") from error
    except ValueError as error:
        raise _altered(path, what, f"cannot be read: {error}") from error
    except storage_errors() as error:
        raise StoreError(f"{path}: metadata of {what} cannot be read: {error}") from error


def signed_attributes(
    document: Mapping[str, Any] | None, kind: str = SoftLabelSchema.kind
) -> dict[str, Any] | None:
    """Return the attributes of a group's document, or None if their digest does not fit."""
    attributes = None if document is None else document.get("attributes")
    if not isinstance(attributes, dict):
        return None
    signed = {name: attributes.get(name) for name in (kind, "arrays")}
    whole = all(isinstance(value, dict) for value in signed.values())
    return attributes if whole and attributes.get("digest") == canonical_digest(signed) else None


def read_schema(path: Path) -> tuple[SoftLabelSchema, list[str]]:
    """Return what a store of soft labels says of itself (see `read_stored`)."""
    return read_stored(path, SoftLabelSchema)


def read_stored(path: Path, model: type[Schema]) -> tuple[Schema, list[str]]:
    """Return what a store says of itself, and how its arrays differ from that.

    Raises:
        StoreError: If there is no store, or it cannot be read.
        SchemaMismatchError: If it is of another kind or version; lists every field.
        CorruptLabelError: If its metadata was altered.
    """
    document = _document(path, model.noun)
    attributes = document.get("attributes")
    said = attributes.get(model.kind) if isinstance(attributes, dict) else None
    if not isinstance(attributes, dict) or not isinstance(said, dict):
        raise SchemaMismatchError(
            str(path), [f"attribute {model.kind!r} must be there: this is not a {model.noun}"]
        )
    whole = signed_attributes(document, model.kind) is not None
    # A newer version may sign itself in another way: it is refused as newer, not as altered.
    if said.get("version") == model.own_version and not whole:
        raise _altered(path, "the group", "was altered: its digest does not fit")
    schema = model.from_attributes(said, str(path))
    if any(document.get(name) != value for name, value in GROUP.items()):
        raise _altered(path, "the group", f"was altered: it must say {GROUP}")
    documents = {name: _document(path, model.noun, name) for name in array_names(schema)}
    for name, found in documents.items():
        if array_digest(found) != attributes["arrays"].get(name):
            raise _altered(path, f"array {name}", "was altered: its digest does not fit")
    return schema, shape_problems(schema, documents)


def open_soft_labels(
    path: Path,
    *,
    space: LabelSpace | None = None,
    expected: SoftLabelSchema | None = None,
    cache: ShardCache | None = None,
) -> SoftLabelStore:
    """Open a store, or say everything that keeps it from being the one that is expected.

    Args:
        path: Directory of the store.
        space: The label space into which classes are resolved by name; without it, global ids
            are those of the time when the store was made.
        expected: What the store must say of itself (see `SoftLabelSchema.validate`).
        cache: Where shards that `read` and `fetch` have decompressed are kept, maybe with those
            of other stores; one of its own of 256 MB when None.

    Raises:
        StoreError: If there is no store.
        SchemaMismatchError: If it is of another kind or a newer version, or differs from
            `expected`; lists every field.
        CorruptLabelError: If its metadata was altered.
        LabelSpaceError: If `space` lacks a class of the teacher; names every one.
    """
    path = location(path)
    schema, problems = read_schema(path)
    if expected is not None:
        problems += expected.validate(schema)
    if problems:
        raise SchemaMismatchError(str(path), problems)
    label_map = schema.label_map if space is None else schema.resolve(space)
    return SoftLabelStore(path, schema, label_map, cache or ShardCache())
