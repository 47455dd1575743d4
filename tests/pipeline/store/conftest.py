"""Small stores for the tests of pipeline.store."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pipeline.locations import is_local
from pipeline.store import SoftLabelStore, create_soft_labels, open_soft_labels
from pipeline.store.documents import write_attributes
from pipeline.store.garbage import find_garbage, remove_garbage
from pipeline.store.published import publish
from pipeline.workspace import Workspace
from storage_schemas.soft_labels import SoftLabelSchema, encode

Codes = tuple[npt.NDArray[Any], npt.NDArray[Any]]


def schema_of(**fields: Any) -> SoftLabelSchema:
    num_classes = fields.get("num_classes", 12)
    values: dict[str, Any] = {
        "teacher": "birds",
        "num_rows": 300,
        "num_views": 2,
        "k": 4,
        "num_classes": num_classes,
        "temperatures": (1.0, 2.0),
        "shard_rows": 128,
        "chunk_rows": 32,
        "classes": tuple(f"birds/{i}" for i in range(num_classes)),
        "global_ids": tuple(range(num_classes - 1, -1, -1)),
        "fingerprint_parts": {"weights": "abc"},
    }
    return SoftLabelSchema.model_validate(values | fields)


def labels_of(schema: SoftLabelSchema, rows: npt.NDArray[np.int64], view: int) -> Codes:
    """Return the codes of rows in a view, a pure function of (row, view)."""
    ids, gaps = schema.empty(len(rows))
    for position, row in enumerate(rows):
        rng = np.random.default_rng((int(row), view))
        logits = -np.sort(-rng.normal(0, 3, schema.k))[None]
        ratio = rng.uniform(-1, 5, (1, len(schema.temperatures)))
        found = rng.choice(schema.num_classes, schema.k, replace=False)[None]
        ids[position], gaps[position] = (part[0] for part in encode(schema, found, logits, ratio))
    return ids, gaps


def shard_labels(
    store: SoftLabelStore, view: int, shard: int, rows: npt.NDArray[np.int64] | None = None
) -> Codes:
    """Return one whole shard in which the given rows (by default all) are labelled."""
    span = store.shard_span(shard)
    inside = np.array(span) if rows is None else rows[np.isin(rows, np.array(span))]
    ids, gaps = store.empty_shard()
    ids[inside - span.start], gaps[inside - span.start] = labels_of(store.schema, inside, view)
    return ids, gaps


def fill_store(store: SoftLabelStore, rows: npt.NDArray[np.int64] | None = None) -> None:
    """Write every shard that holds some of the rows."""
    for view, shard in np.ndindex(store.schema.num_views, store.schema.num_shards):
        ids, gaps = shard_labels(store, view, shard, rows)
        if (ids != store.schema.ids_fill).any():
            store.write_shard(view, shard, ids, gaps)


@pytest.fixture
def cases() -> SimpleNamespace:
    """The functions above: test modules do not import one another."""
    return SimpleNamespace(
        schema_of=schema_of,
        labels_of=labels_of,
        shard_labels=shard_labels,
        fill_store=fill_store,
    )


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A full store made once; tests work on copies, which need no sync."""
    store = create_soft_labels(tmp_path_factory.mktemp("template") / "store.zarr", schema_of())
    fill_store(store)
    return store.path


@pytest.fixture
def empty_store(location: Path) -> SoftLabelStore:
    return create_soft_labels(location / "birds" / "store.zarr", schema_of())


@pytest.fixture
def full_store(location: Path, template: Path) -> SoftLabelStore:
    path = location / "birds" / "store.zarr"
    if is_local(path):
        shutil.copytree(template, path)
    else:
        for file in template.rglob("*"):
            if file.is_file():
                (path / file.relative_to(template).as_posix()).write_bytes(file.read_bytes())
    return open_soft_labels(path)


@pytest.fixture
def workspace(tmp_path: Path, template: Path) -> Workspace:
    """Four stores of one split and one of the other, "e"; number 2 is published.

    Their names are one digit, sixteen times.
    """
    for number in range(4):
        _copy(template, tmp_path, f"{number}", 1000 * number)
    _copy(template, tmp_path, "e", 1000, split="test")
    workspace = Workspace(tmp_path)
    publish(workspace, "birds", {"train": "2" * 16, "test": "f" * 16}, {})
    return workspace


def _copy(template: Path, root: Path, name: str, time: float, **fields: Any) -> None:
    path = root / "labels" / "birds" / f"{name * 16}.zarr"
    shutil.copytree(template, path)
    schema = open_soft_labels(path).schema
    write_attributes(path, schema.model_copy(update={"split": "train"} | fields))
    for file in [path, *path.rglob("*")]:
        os.utime(file, (time, time))


def short(name: str) -> str:
    """Return the name of a store with its sixteen equal digits written once."""
    return re.sub(r"([0-9a-f])\1{15}", r"\1", name)


@pytest.fixture
def collect() -> Callable[..., dict[str, tuple[str, str]]]:
    """Remove what can be, and return name -> (action, reason)."""

    def run(workspace: Workspace, keep: int = 0, **options: Any) -> dict[str, tuple[str, str]]:
        values: dict[str, Any] = {"current": (), "teachers": ("birds",), "keep": keep} | options
        found = remove_garbage(workspace, find_garbage(workspace, **values))
        return {short(Path(item.store).name): (item.action, item.reason) for item in found}

    return run
