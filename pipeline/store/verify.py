"""Verification of a store: does every byte that counts as written still say what it said?

In: `verify_store`, quick (metadata, records, the structure of the files) and full (every shard
read and checked). Left out: repair; a damaged shard is labelled again. The third depth, audit,
runs the teacher again (pipeline.teachers.audit).
"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.store.layout import shard_file
from pipeline.store.opening import open_soft_labels
from pipeline.store.shards import label_problems
from pipeline.store.soft_label_store import SoftLabelStore
from storage_schemas.errors import ConcentrateError

Depth = Literal["quick", "full"]


def _size(file: Path) -> int | None:
    try:
        found = file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def shard_problems(store: SoftLabelStore, view: int, shard: int, depth: Depth) -> list[str]:
    """Return one sentence per problem of one shard; none if nothing of it was ever written."""
    where = f"view {view}, shard {shard}"
    sizes = {
        name: _size(shard_file(store.path, name, view, shard))
        for name in ("ids", "gaps", "commits")
    }
    problems = [f"{name}, {where}: file is empty" for name, size in sizes.items() if size == 0]
    try:
        labelled, _, _ = store.commit_record(view, shard)
    except ConcentrateError as error:
        return [*problems, str(error)]
    if labelled == 0:
        written = [name for name in ("ids", "gaps") if sizes[name] is not None]
        if written:
            problems.append(
                f"{' and '.join(written)}, {where}: data without a commit record, from a write "
                "that was interrupted; label again"
            )
        return problems
    if not problems:
        for name in ("ids", "gaps"):
            found = store.structure_problem(name, view, shard)
            if found is not None:
                problems.append(f"{name}, {where}: committed, but {found}")
    if depth == "quick" or problems:
        return problems
    try:
        ids, gaps = store.read_shard(view, shard)
    except ConcentrateError as error:
        return [str(error)]
    rows, wrong = label_problems(store.schema, ids, gaps)
    if int(rows.sum()) != labelled:
        wrong.append(f"{labelled} labels by its record, got {int(rows.sum())}")
    return [f"{where}: {problem}" for problem in wrong]


def damaged_shards(store: SoftLabelStore, depth: Depth) -> dict[tuple[int, int], list[str]]:
    """Return (view, shard) -> what is wrong with it, of every shard that is not sound.

    Args:
        store: Opened just now, so that its metadata is known to be sound.
        depth: See `verify_store`.
    """
    places = np.ndindex(store.schema.num_views, store.schema.num_shards)
    found = {(view, shard): shard_problems(store, view, shard, depth) for view, shard in places}
    return {place: problems for place, problems in found.items() if problems}


def take_out_of_use(store: SoftLabelStore, depth: Depth) -> list[str]:
    """Remove the commit records of damaged shards, and return what was wrong with each.

    They count as not labelled from then on: a reader refuses them, and labelling writes exactly
    them again. The caller holds the writer lock of the store.
    """
    damaged = damaged_shards(store, depth)
    for view, shard in damaged:
        store.discard_shard(view, shard)
    return [problem for problems in damaged.values() for problem in problems]


def verify_store(store: SoftLabelStore, depth: Depth = "quick") -> list[str]:
    """Return everything that is wrong with a store; an empty list means it is sound.

    Shards of which nothing was written are not a problem here (see `coverage.py`), nor are
    files that an interrupted write left under a temporary name.

    Args:
        store: The store; its metadata is read anew.
        depth: quick: metadata, commit records, and that each file of a committed shard has a
            sound index whose chunks lie within it, which finds truncation. full: also every
            committed shard, read and compared with its record.
    """
    try:
        store = open_soft_labels(store.path)
    except ConcentrateError as error:
        return [str(error)]
    return [problem for problems in damaged_shards(store, depth).values() for problem in problems]
