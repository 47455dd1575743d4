"""Verification of a store: does every byte that counts as written still say what it said?

In: `verify_store`, quick (metadata, records, the structure of the files) and full (every shard
read and checked). Left out: repair; a damaged shard is labelled again, a damaged document made
again (repair.py). The third depth, audit, runs the teacher again (pipeline.teachers.audit).
"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.locations import read_whole
from pipeline.store.block_feature_store import BlockFeatureStore, open_block_features
from pipeline.store.documents import SUBGROUP, document_bytes, document_file, read_document
from pipeline.store.labelled_rows import row_problems
from pipeline.store.layout import COMMITS, array_names, array_shape, group_names, shard_files
from pipeline.store.opening import open_soft_labels
from pipeline.store.row_reader import Rows
from pipeline.store.soft_label_store import SoftLabelStore
from storage_schemas.errors import ConcentrateError

Depth = Literal["quick", "full"]
Store = SoftLabelStore | BlockFeatureStore


def _size(file: Path) -> int | None:
    try:
        found = file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def shard_problems(
    store: Store, view: int, shard: int, depth: Depth, expected: int = 0
) -> list[str]:
    """Return one sentence per problem of one shard.

    Args:
        store: Opened.
        view: View of the shard.
        shard: Index along the rows.
        depth: See `verify_store`.
        expected: Labels that should be there; with 0, a shard of which nothing was written is
            no problem.
    """
    where = f"view {view}, shard {shard}"
    files = shard_files(store.schema, store.path, view, shard)
    sizes = {name: _size(file) for name, file in files.items()}

    def sentence(arrays: list[str], what: str) -> str:
        return f"{store.path}: array {' and '.join(arrays)}, {where}: {what}"

    problems = [sentence([name], "file is empty") for name, size in sizes.items() if size == 0]
    try:
        labelled = store.commit_record(view, shard)[0]
    except ConcentrateError as error:
        return [*problems, str(error)]
    data = [name for name in files if name != COMMITS]
    if labelled == 0:
        written = [name for name in data if sizes[name] is not None]
        if written:
            why = "data without a record in array commits, lost or of an interrupted write"
            problems.append(sentence(written, f"{why}; run `concentrate label`"))
        elif expected:
            problems.append(
                sentence(
                    data,
                    f"{expected} labels are missing; run `concentrate label`",
                )
            )
        return problems
    if not problems:
        for name in data:
            found = store.structure_problem(name, view, shard)
            if found is not None:
                problems.append(sentence([name], f"committed, but {found}"))
    if depth == "quick" or problems:
        return problems
    try:
        values = store.read_shard(view, shard)
    except ConcentrateError as error:
        return [str(error)]
    rows, wrong = row_problems(store.schema, values)
    problems = [sentence(data, problem) for problem in wrong]
    if int(rows.sum()) != labelled:
        what = f"{labelled} labels by its record, got {int(rows.sum())}"
        problems.append(sentence([COMMITS], what))
    return problems


def metadata_problems(store: Store) -> list[str]:
    """Return one sentence per metadata document that is not as its writer wrote it.

    These change no label; `open_soft_labels` refuses those that could. A flipped bit in a blank,
    or in the length of an array, is found here.
    """
    problems = []
    for name in ("", *array_names(store.schema)):
        what = f"{store.path}: metadata of {f'array {name}' if name else 'the group'}"
        document = read_document(store.path, name)
        if read_whole(document_file(store.path, name)) != document_bytes(document):
            problems.append(f"{what}: altered in its spelling, not in its meaning")
        elif name and document["shape"] != list(array_shape(store.schema, name)):
            problems.append(
                f"{what}: its shape must be {list(array_shape(store.schema, name))}, got "
                f"{document['shape']}: a growth was interrupted, or it was altered"
            )
    for name in group_names(store.schema):
        file = document_file(store.path, name)
        if _size(file) is None or read_whole(file) != document_bytes(SUBGROUP):
            problems.append(f"{store.path}: metadata of group {name}: lost or altered")
    return [f"{problem}; run `concentrate label`, which writes it anew" for problem in problems]


def constant_problems(store: Store) -> list[str]:
    """Return one sentence per array that is not what was fitted when the store was made."""
    if not isinstance(store, BlockFeatureStore):
        return []
    problems = []
    for array in store.schema.arrays:
        try:
            store.fitted(array.name)
        except ConcentrateError as error:
            problems.append(str(error))
    return problems


def reopened(store: Store) -> Store:
    """Return a store with its metadata read anew.

    Raises:
        ConcentrateError: As `open_soft_labels` and `open_block_features`.
    """
    if isinstance(store, BlockFeatureStore):
        return open_block_features(store.path)
    return open_soft_labels(store.path)


def damaged_shards(
    store: Store, depth: Depth, rows: Rows | None = None
) -> dict[tuple[int, int], list[str]]:
    """Return (view, shard) -> what is wrong with it, of every shard that is not sound.

    Args:
        store: Opened just now, so that its metadata is known to be sound.
        depth: See `verify_store`.
        rows: See `verify_store`.
    """
    views, shards = store.schema.num_views, store.schema.num_shards
    inside = np.zeros(0, np.int64) if rows is None else rows[rows < store.schema.num_rows]
    expected = np.bincount(inside // store.schema.shard_rows, minlength=shards)
    found = {
        (view, shard): shard_problems(store, view, shard, depth, int(expected[shard]))
        for view, shard in np.ndindex(views, shards)
    }
    return {place: problems for place, problems in found.items() if problems}


def take_out_of_use(store: Store, depth: Depth) -> None:
    """Remove the commit records of damaged shards.

    They count as not labelled from then on: a reader refuses them, and labelling writes exactly
    them again. The caller holds the writer lock of the store.
    """
    for view, shard in damaged_shards(store, depth):
        store.discard_shard(view, shard)


def verify_store(store: Store, depth: Depth = "quick", rows: Rows | None = None) -> list[str]:
    """Return everything that is wrong with a store; an empty list means it is sound.

    Files that an interrupted write left under a temporary name are not a problem.

    Args:
        store: The store; its metadata is read anew.
        depth: quick: metadata, commit records, and that each file of a committed shard has a
            sound index whose chunks lie within it, which finds truncation. full: also every
            committed shard, read and compared with its record.
        rows: Ascending rows that must be labelled, as far as the store has room for them. None:
            shards of which nothing was written are not a problem (see `coverage.py`).
    """
    try:
        store = reopened(store)
    except ConcentrateError as error:
        return [str(error)]
    damaged = damaged_shards(store, depth, rows).values()
    return [
        *metadata_problems(store),
        *constant_problems(store),
        *(problem for problems in damaged for problem in problems),
    ]
