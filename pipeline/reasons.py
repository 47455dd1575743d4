"""Why work is to be done, in words: what differs between what was made and what is asked for.

In: differences of settings and class lists, and what a store lacks. Left out: what is to be done
(plan.py, training/runs.py). Imports no torch and nothing of the teachers: the student's side uses
it too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.store.layout import shard_file
from pipeline.store.opening import has_store, open_soft_labels, read_schema
from pipeline.workspace import read_record
from storage_schemas.errors import ConcentrateError
from storage_schemas.printable import counted
from storage_schemas.soft_label_schema import SoftLabelSchema

_NAMED = 3
_LONGEST = 40


def class_changes(old: Sequence[str], new: Sequence[str]) -> list[str]:
    """Return what differs between two class lists; empty when they are equal."""
    found = []
    for word, names in (
        ("more", [name for name in new if name not in set(old)]),
        ("less", [name for name in old if name not in set(new)]),
    ):
        if names:
            named = ", ".join(names[:_NAMED]) + (" and others" if len(names) > _NAMED else "")
            found.append(f"{counted(len(names), 'class')} {word} ({named})")
    if not found and list(old) != list(new):
        found.append("the classes are in another order")
    return found


def setting_changes(name: str, old: Any, new: Any) -> list[str]:
    """Return "name old -> new" of every setting that differs, by dotted key."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = sorted({*old, *new})
        return [
            change
            for key in keys
            for change in setting_changes(f"{name}.{key}", old.get(key), new.get(key))
        ]
    if old == new or (isinstance(old, list | tuple) and list(old) == new):
        return []
    shown = f"{name} {old!r} -> {new!r}"
    return [shown if len(shown) <= len(name) + _LONGEST else name]


def part_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return what differs between the parts of two fingerprints."""
    found = []
    for name in sorted({*old, *new}):
        before, after = old.get(name), new.get(name)
        if before == after:
            continue
        if name == "classes":
            found += class_changes(before or (), after or ())
        elif name == "weights":
            found.append("other weights")
        elif name == "manifest":
            found.append("other images from the first row on")
        else:
            found += setting_changes("views" if name == "recipe" else name, before, after)
    return found or ["something"]


def training_reason(folder: Path, parts: Mapping[str, Any]) -> str:
    """Return why a specialist is to be trained.

    Args:
        folder: Its run folder; beside it lie those of other settings.
        parts: What its weights depend on.
    """
    if (folder / "checkpoints").exists():
        return "training was interrupted"
    records = [read_record(path) for path in folder.parent.glob("*/record.json")]
    finished = [found["parts"] for found in records if found and "parts" in found]
    if not finished:
        return "weights are null, none trained yet"
    nearest = min((part_changes(old, parts) for old in finished), key=len)
    return f"changed since it was trained: {', '.join(nearest)}"


def store_changes(published: Path, schema: SoftLabelSchema) -> str:
    """Return in which settings the published store differs from the one that is asked for."""
    try:
        old = read_schema(published)[0]
    except ConcentrateError as error:
        return f"the published store cannot be used: {error}"
    before, after = (
        {**found.fingerprint_parts, "classes": found.classes, "recipe": found.recipe}
        for found in (old, schema)
    )
    return f"changed since the published store: {', '.join(part_changes(before, after))}"


def missing_reason(
    path: Path, missing: Sequence[tuple[int, int]], rows: npt.NDArray[np.int64]
) -> str:
    """Return why labels are missing in a store that is there, as far as its files tell.

    Args:
        path: Of the store.
        missing: (view, shard) pairs to be written.
        rows: Ascending rows that the teacher labels.
    """
    store = open_soft_labels(path)
    counts = store.commits[:, :, 0]
    new = rows[rows >= store.schema.num_rows]
    grown = set(np.unique(new // store.schema.shard_rows).tolist())
    behind = cut = absent = 0
    for view, shard in missing:
        if shard in grown:
            continue
        if counts[view, shard]:
            behind += 1
        elif all(shard_file(path, name, view, shard).exists() for name in ("ids", "gaps")):
            cut += 1
        else:
            absent += 1
    found = []
    if len(new):
        found.append(counted(len(new), "new row"))
    if behind:
        found.append(f"rows added or back since {counted(behind, 'shard')} were written")
    if cut:
        found.append(f"{counted(cut, 'shard')} damaged and out of use, or cut off while written")
    if absent:
        found.append(f"interrupted: {counted(absent, 'shard')} missing")
    return "; ".join(found)


def label_reason(
    path: Path,
    published: Path | None,
    schema: SoftLabelSchema,
    missing: Sequence[tuple[int, int]],
    rows: npt.NDArray[np.int64],
) -> str:
    """Return why a teacher's labels of one split are not up to date.

    Args:
        path: Of the store that is asked for.
        published: The current store of the teacher.
        schema: What the store that is asked for must say of itself.
        missing: (view, shard) pairs to be written.
        rows: Ascending rows that the teacher labels.
    """
    if not missing:
        return "complete, to be published"
    if has_store(path):
        return missing_reason(path, missing, rows)
    return "not labelled yet" if published is None else store_changes(published, schema)
