"""Stores written to harm: opened, verified and read to our own error or to labels, in bounds."""

from __future__ import annotations

import contextlib
import copy
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numcodecs import zstd

from pipeline.store import inspect_store, open_soft_labels, verify_store
from pipeline.store.documents import array_digest
from pipeline.store.layout import shard_file
from storage_schemas.errors import ConcentrateError
from storage_schemas.label_space import canonical_digest

ARRAYS = ("ids", "gaps", "commits")
SECONDS = 20  # far above what any of these takes, and far below a hang

SETTINGS = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

numbers = st.sampled_from(
    [0, 1, -1, 2, 2**31, 2**32, 2**62, 2**63, 10**30, 0.5, 1e300, float("nan")]
)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=5,
)


def touch(path: Path, *actions: Callable[[Path], object]) -> None:
    """Do with a store what a user can; only our own errors may come out, and soon."""
    started = time.monotonic()
    for action in actions or ACTIONS:
        with contextlib.suppress(ConcentrateError):
            action(path)
    assert time.monotonic() - started < SECONDS


def verify_store_of(path: Path) -> None:
    for depth in ("quick", "full"):
        verify_store(open_soft_labels(path), depth)  # type: ignore[arg-type]


def read_of(path: Path) -> None:
    store = open_soft_labels(path)
    for row in (0, 200, store.schema.num_rows - 1):
        found = store.read(np.array([row]), store.schema.num_views - 1)
        assert found.ids.shape == (1, 1, store.schema.k)


def dask_of(path: Path) -> None:
    store = open_soft_labels(path)
    store.to_dask(store.schema.temperatures[0])["entropy"][:, -2:].compute(scheduler="sync")


ACTIONS: tuple[Callable[[Path], object], ...] = (verify_store_of, read_of, inspect_store, dask_of)


def places(tree: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every value in a JSON tree."""
    found = [at] if at else []
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        found.append((*at, key))
        if isinstance(value, dict | list):
            found += places(value, (*at, key))[1 if at else 0 :]
    return found


def mutate(data: st.DataObject, tree: Any) -> None:
    """Replace, remove, rename or add one value."""
    *parents, key = data.draw(st.sampled_from(places(tree)))
    node = tree
    for part in parents:
        node = node[part]
    kind = data.draw(st.sampled_from(["replace", "replace", "remove", "add", "deep"]))
    if kind == "remove":
        del node[key]
    elif kind == "add" and isinstance(node, dict):
        node[data.draw(st.text(max_size=5))] = data.draw(values)
    elif kind == "deep":
        deep: Any = data.draw(values)
        for _ in range(data.draw(st.sampled_from([5, 300, 900]))):
            deep = [deep]
        node[key] = deep
    else:
        node[key] = data.draw(values)


def write_signed(path: Path, documents: dict[str, Any], *, sign: bool) -> None:
    """Write the metadata of a store, with digests that fit when asked."""
    attributes = documents[""].get("attributes")
    if sign and isinstance(attributes, dict):
        attributes["arrays"] = {
            name: array_digest(documents[name])
            for name in ARRAYS
            if isinstance(documents[name], dict)
        }
        said = attributes.get("soft_labels")
        attributes["digest"] = canonical_digest(
            {"soft_labels": said, "arrays": attributes["arrays"]}
        )
    for name, document in documents.items():
        (path / name / "zarr.json").write_text(json.dumps(document))


@pytest.fixture(scope="module")
def documents(template: Path) -> dict[str, Any]:
    return {
        name: json.loads((template / name / "zarr.json").read_bytes()) for name in ("", *ARRAYS)
    }


@SETTINGS
@given(data=st.data())
def test_no_metadata_are_a_traceback_or_a_hang(
    full_store: Any, documents: dict[str, Any], data: st.DataObject
) -> None:
    """Any change to any metadata document, signed as its writer would or not."""
    changed = copy.deepcopy(documents)
    name = data.draw(st.sampled_from(["", "", *ARRAYS]))
    for _ in range(data.draw(st.integers(1, 2))):
        mutate(data, changed[name])
    try:
        write_signed(full_store.path, changed, sign=data.draw(st.booleans()))
    except RecursionError:
        return
    touch(full_store.path, data.draw(st.sampled_from(ACTIONS)))


@pytest.mark.parametrize(
    "change",
    [
        {"num_rows": 2**62},
        {"num_rows": 2**40, "shard_rows": 1, "chunk_rows": 1},
        {"num_views": 2**31},
        {"shard_rows": 2**31, "chunk_rows": 2**31, "num_rows": 2**50},
        {"k": 2**31, "num_classes": 2**31},
        {"teacher": "\x1b[31m"},
        {"classes": [f"a/\u202e{i}" for i in range(12)]},
        {"temperatures": [1e-320, 5e-324]},
        {"temperatures": [1e308]},
        {"grown_at": [2**64]},
        {"grown_at": [-5, 7]},
        {"num_rows": 0},
        {"recipe": {"a": float("nan")}},
    ],
)
def test_signed_schemas_of_any_size_stay_in_bounds(
    full_store: Any, documents: dict[str, Any], change: dict[str, Any]
) -> None:
    """Counts that would take all memory or all day, in arrays that fit them."""
    changed = copy.deepcopy(documents)
    said = changed[""]["attributes"]["soft_labels"]
    said.update(change)
    shards = -(-said["num_rows"] // said["shard_rows"])
    for name, rows, columns in (("ids", "shard_rows", said["k"]), ("gaps", "shard_rows", 5)):
        document = changed[name]
        document["shape"] = [said["num_views"], said["num_rows"], columns]
        document["chunk_grid"]["configuration"]["chunk_shape"] = [1, said[rows], columns]
        inner = document["codecs"][0]["configuration"]
        inner["chunk_shape"] = [1, said["chunk_rows"], columns]
    changed["commits"]["shape"] = [said["num_views"], shards, 3]
    write_signed(full_store.path, changed, sign=True)
    touch(full_store.path)


@SETTINGS
@given(data=st.data())
def test_no_bytes_are_a_traceback_or_a_hang(full_store: Any, data: st.DataObject) -> None:
    """Random bytes, lying indices and huge frames, with checksums that fit or not."""
    name = data.draw(st.sampled_from(ARRAYS))
    file = shard_file(full_store.path, name, 1, data.draw(st.integers(0, 2)))
    sound = file.read_bytes()
    kind = data.draw(st.sampled_from(["random", "flip", "index", "frame"]))
    if kind == "random":
        content = data.draw(st.binary(max_size=200))
    elif kind == "flip":
        at = data.draw(st.integers(0, len(sound) - 1))
        content = sound[:at] + data.draw(st.binary(max_size=9)) + sound[at + 3 :]
    else:
        chunk = zstd.compress(bytes(data.draw(st.sampled_from([1, 160, 161, 1 << 16]))), 1)
        if kind == "frame":
            head = b"\x28\xb5\x2f\xfd\xe0" + (100 << 30).to_bytes(8, "little")
            chunk = data.draw(st.sampled_from([head + chunk[6:], b"\2\1\x21\2" + b"\xff" * 12]))
        chunk += int(google_crc32c.value(chunk)).to_bytes(4, "little")
        sizes = st.sampled_from([0, 1, len(chunk), 2**31, 2**63, 2**64 - 1])
        entries = [(data.draw(sizes), data.draw(sizes)) for _ in range(4)]
        if kind == "frame":
            entries = [(0, len(chunk))] * 4
        index = np.array(entries, np.uint64).astype("<u8").tobytes()
        content = chunk + index + int(google_crc32c.value(index)).to_bytes(4, "little")
    file.write_bytes(content)
    touch(full_store.path, data.draw(st.sampled_from(ACTIONS)))
    file.write_bytes(sound)


@pytest.mark.parametrize("document", ["", "[]", "7", "null", "{", "[" * 200_000, '{"a":' * 50_000])
@pytest.mark.parametrize("name", ["", "ids", "commits"])
def test_documents_that_are_no_objects(full_store: Any, name: str, document: str) -> None:
    """Other JSON, half JSON and bottomless JSON: one problem, in words."""
    (full_store.path / name / "zarr.json").write_text(document)
    (problem,) = verify_store(full_store)
    assert len(problem) < 1000
    touch(full_store.path)


def test_a_document_as_large_as_a_disk_is_not_read(full_store: Any) -> None:
    """A sparse terabyte under the name of the metadata is refused by its size."""
    with (full_store.path / "ids" / "zarr.json").open("r+b") as file:
        file.truncate(1 << 40)
    (problem,) = verify_store(full_store)
    assert "at most" in problem
    shutil.rmtree(full_store.path)
