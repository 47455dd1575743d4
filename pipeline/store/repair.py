"""Metadata documents made again, so that a damaged one does not cost the teacher's days.

In: the repair of the documents of the group and of its arrays. Left out: finding the damage
(verify.py) and labels: a damaged shard is labelled again.

The group's document signs those of the arrays, and each of these tells the store's layout. Every
shard's checksum begins with the store's fingerprint, so labels of another store cannot come back
to life under a document that was made again.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pipeline.locations import is_local, storage_errors
from pipeline.store.block_feature_store import BlockFeatureStore, open_block_features
from pipeline.store.documents import (
    SUBGROUP,
    array_digest,
    document_file,
    read_document,
    replace_document,
    write_attributes,
)
from pipeline.store.layout import array_names, array_shape, create_arrays, group_names
from pipeline.store.opening import open_soft_labels, signed_attributes, stamped
from pipeline.store.soft_label_store import SoftLabelStore
from pipeline.store.verify import metadata_problems, take_out_of_use
from storage_schemas.block_features import BlockFeatureSchema
from storage_schemas.errors import CorruptLabelError, SchemaMismatchError, StoreError
from storage_schemas.soft_labels import SoftLabelSchema
from storage_schemas.stored_array import StoreSchema

Documents = dict[str, dict[str, Any]]
Schema = TypeVar("Schema", SoftLabelSchema, BlockFeatureSchema)


def has_remains(path: Path) -> bool:
    """Tell whether there is a store, or what is left of one whose metadata was lost.

    In a bucket a creation that was killed leaves documents of arrays; commit records are of a
    store that was there.
    """
    if is_local(path):
        return path.exists()
    return document_file(path).exists() or (path / "commits" / "c").exists()


def repair_metadata(path: Path, expected: Schema, grown_at: Sequence[int] = ()) -> list[str]:
    """Make damaged documents of a store again, and take shards that do not fit out of use.

    The caller holds the writer lock of the store.

    Args:
        path: Directory of the store, named after the fingerprint of `expected`.
        expected: What it must say of itself.
        grown_at: Rows of the manifest after each of its appends: stands for the history of growth
            when the group's document is lost.

    Returns:
        What was wrong; empty when every document is as it was written.

    Raises:
        SchemaMismatchError: If a sound document says that this is another kind of store.
        CorruptLabelError: If too little is left to know the store's layout.
    """
    readable = True
    try:
        problems = metadata_problems(_opened(path, expected))
    except (StoreError, SchemaMismatchError) as error:
        problems, readable = [str(error)], False
    if not problems:
        return []
    names = array_names(expected)
    found = {name: document for name in names if (document := _document(path, name)) is not None}
    attributes = signed_attributes(_document(path), expected.kind)
    if attributes is None:
        schema = _recovered(path, expected, found, grown_at)
        signed = {name: array_digest(document) for name, document in _fresh(schema).items()}
    else:
        schema = type(expected).from_attributes(attributes[expected.kind], str(path))
        signed = attributes["arrays"]
    for name, fresh in _fresh(schema).items():
        candidates = [found.get(name, {}), fresh]
        sound = [document for document in candidates if array_digest(document) == signed[name]]
        if not sound:
            raise _beyond_repair(path, f"array {name}")
        shape = list(array_shape(schema, name))
        replace_document(document_file(path, name), {**sound[0], "shape": shape})
    for name in group_names(schema):
        replace_document(document_file(path, name), SUBGROUP)
    write_attributes(path, schema, attributes)
    if not readable:
        take_out_of_use(_opened(path, schema), "full")
    return problems


def _opened(path: Path, schema: Schema) -> SoftLabelStore | BlockFeatureStore:
    if isinstance(schema, BlockFeatureSchema):
        return open_block_features(path)
    return open_soft_labels(path)


def _document(path: Path, name: str = "") -> dict[str, Any] | None:
    try:
        return read_document(path, name)
    except ValueError:
        return None
    except storage_errors():
        return None


def _recovered(path: Path, expected: Schema, found: Documents, grown_at: Sequence[int]) -> Schema:
    """Return the schema of a store whose group's document is lost, from an array that is left."""
    for name in [array.name for array in expected.stored_arrays]:
        try:
            document = found[name]
            layout = {
                "num_rows": min(int(document["shape"][1]), expected.num_rows),
                "shard_rows": int(document["chunk_grid"]["configuration"]["chunk_shape"][1]),
                "chunk_rows": int(document["codecs"][0]["configuration"]["chunk_shape"][1]),
            }
            growth = {"grown_at": tuple(at for at in grown_at if at < layout["num_rows"])}
            schema = type(expected).model_validate(expected.model_dump() | layout | growth)
        except (KeyError, IndexError, TypeError, ValueError):
            continue
        if array_digest(document) == array_digest(_fresh(schema)[name]):
            return stamped(schema)
    raise _beyond_repair(path, "the group and of its arrays")


def _beyond_repair(path: Path, what: str) -> CorruptLabelError:
    return CorruptLabelError(
        f"{path}: the metadata of {what} is damaged beyond repair; delete the store and label again"
    )


def _fresh(schema: StoreSchema) -> Documents:
    """Return the arrays' documents as a writer of this schema writes them."""
    with tempfile.TemporaryDirectory() as folder:
        create_arrays(Path(folder), schema)
        return {name: read_document(Path(folder), name) for name in array_names(schema)}
