"""Writes of stores: whole or not at all, growth, and one that dies in the middle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.locations import is_local
from pipeline.store import SoftLabelStore, create_soft_labels, open_soft_labels
from pipeline.store import commit as commit_module
from pipeline.store.coverage import missing_labels
from pipeline.store.opening import has_store
from pipeline.store.shards import ShardFiles
from storage_schemas.errors import (
    MissingLabelError,
    StoreError,
)
from storage_schemas.soft_labels import decode

on_both = pytest.mark.parametrize("location", ["local", "s3"], indirect=True)
NONE = np.zeros(0, np.int64)
ROWS = np.arange(300)


class Killed(BaseException):
    """Stands for the death of the process."""


@on_both
def test_labelling_twice_gives_equal_files(location: Path, cases: Any) -> None:
    """Two stores of the same labels hold the same bytes in every data file."""
    files = []
    for name in ("a", "b"):
        store = create_soft_labels(location / name, cases.schema_of(created="x"))
        cases.fill_store(store)
        found = sorted(file for file in store.path.rglob("*") if file.is_file())
        files.append([(str(file.relative_to(store.path)), file.read_bytes()) for file in found])
    assert files[0] == files[1]


@on_both
@pytest.mark.parametrize("rewrite", [False, True])
@pytest.mark.parametrize("moment", ["before gaps", "after gaps", "after ids", "before commit"])
def test_a_write_that_dies_is_not_done(
    empty_store: SoftLabelStore,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
    rewrite: bool,
    cases: Any,
) -> None:
    """Wherever a first or second write of a shard ends, its labels are missing."""
    if rewrite:
        cases.fill_store(empty_store)
    done = missing_labels(empty_store, ROWS, NONE)
    original, calls = ShardFiles._write_array, []

    def dying(self: ShardFiles, name: str, *arguments: Any) -> None:
        if moment == "before gaps":
            raise Killed
        original(self, name, *arguments)
        calls.append(name)
        if moment == f"after {name}":
            raise Killed

    monkeypatch.setattr(ShardFiles, "_write_array", dying)
    if moment == "before commit":

        def dying_sync(files: list[Path], root: Path) -> None:
            if len(files) == 2:
                raise Killed
            commit_module.sync(files, root)

        monkeypatch.setattr("pipeline.store.shards.sync", dying_sync)
    labels = cases.shard_labels(empty_store, 1, 1)
    with pytest.raises(Killed):
        empty_store.write_shard(1, 1, *labels)
    monkeypatch.undo()
    assert calls == ["gaps", "ids"][: len(calls)]
    store = open_soft_labels(empty_store.path)
    assert missing_labels(store, ROWS, NONE) == sorted({*done, (1, 1)})
    with pytest.raises(MissingLabelError, match="view 1, shard 1"):
        store.read_shard(1, 1)
    store.write_shard(1, 1, *labels)
    assert (1, 1) not in missing_labels(store, ROWS, NONE)
    np.testing.assert_array_equal(store.read_shard(1, 1)[0], labels[0])


def test_data_is_on_disk_before_the_commit_record(
    empty_store: SoftLabelStore, monkeypatch: pytest.MonkeyPatch, cases: Any
) -> None:
    """Both data files and their directories are synced while there is no commit record."""
    record = empty_store.path / "commits" / "c" / "0" / "0" / "0"
    synced: list[tuple[str, bool]] = []
    original = commit_module._sync_one

    def spy(path: Path) -> None:
        synced.append((str(path.relative_to(empty_store.path)), record.exists()))
        original(path)

    monkeypatch.setattr(commit_module, "_sync_one", spy)
    empty_store.write_shard(0, 0, *cases.shard_labels(empty_store, 0, 0))
    before = {path for path, committed in synced if not committed}
    after = {path for path, committed in synced if committed}
    for name in ("ids", "gaps"):
        assert {f"{name}/c/0/0/0", f"{name}/c/0/0", f"{name}/c/0", f"{name}/c", name} <= before
    assert {"commits/c/0/0/0", "commits/c/0/0", "commits/c/0"} <= after


@on_both
def test_only_whole_sound_shards_are_written(empty_store: SoftLabelStore, cases: Any) -> None:
    """Wrong shapes and types, half rows, bad ids, labels past the end, nothing: all refused."""
    ids, gaps = cases.shard_labels(empty_store, 0, 2)
    half, foreign, past, twice = (ids.copy() for _ in range(4))
    twice[3, 1] = twice[3, 0]
    half[3, 1] = empty_store.schema.ids_fill
    foreign[3, 1] = 12
    past[100], past_gaps = ids[0], gaps.copy()
    past_gaps[100] = gaps[0]
    for bad in (
        (ids[:-1], gaps[:-1]),
        (ids.astype(np.int64), gaps),
        (half, gaps),
        (foreign, gaps),
        (past, past_gaps),
        (twice, gaps),
        empty_store.empty_shard(),
    ):
        with pytest.raises(ValueError, match=r"must be|part|below|past|twice|no label"):
            empty_store.write_shard(0, 2, *bad)
    assert not empty_store.commits.any()
    with pytest.raises(StoreError, match="shard"):
        empty_store.write_shard(0, 3, ids, gaps)
    assert empty_store.write_shard(0, 2, ids[:44], gaps[:44])[0] == 44


@on_both
def test_growth_keeps_labels_and_names_what_is_new(full_store: SoftLabelStore, cases: Any) -> None:
    """After growth old labels are valid as they are; short and new shards are missing."""
    before = full_store.read_shard(0, 2)
    full_store.grow(500)
    store = open_soft_labels(full_store.path)
    assert store.schema.num_rows == 500
    assert store.schema.grown_at == (300,)
    np.testing.assert_array_equal(store.read_shard(0, 2)[0][:44], before[0])
    store.read(np.arange(300), 1)
    assert missing_labels(store, ROWS, NONE) == []
    new = [(0, 2), (0, 3), (1, 2), (1, 3)]
    assert missing_labels(store, np.arange(500), NONE) == new
    for view, shard in new:
        store.write_shard(view, shard, *cases.shard_labels(store, view, shard))
    assert missing_labels(store, np.arange(500), NONE) == []
    rows = np.arange(500)
    expected = decode(store.schema, *cases.labels_of(store.schema, rows, 0))
    np.testing.assert_array_equal(store.read(rows, 0).log_probs[0].numpy(), expected.log_probs)
    with pytest.raises(StoreError, match="only grow"):
        store.grow(499)


@on_both
def test_growth_that_dies_can_be_repeated(
    full_store: SoftLabelStore, monkeypatch: pytest.MonkeyPatch, cases: Any
) -> None:
    """A growth that ends before its attributes leaves a sound store of the old size."""

    def dying(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.store.growth.write_attributes", dying)
        with pytest.raises(Killed):
            full_store.grow(500)
    store = open_soft_labels(full_store.path)
    assert store.schema.num_rows == 300
    assert store.commits.shape == (2, 3, 3)
    store.write_shard(0, 2, *cases.shard_labels(store, 0, 2))
    store.read(np.arange(300), 0)
    store.grow(500)
    assert open_soft_labels(store.path).schema.num_rows == 500


@on_both
def test_a_store_can_start_without_rows(location: Path, cases: Any) -> None:
    """A store of no rows can be made, opened, and grown."""
    store = create_soft_labels(location / "a.zarr", cases.schema_of(num_rows=0))
    assert missing_labels(store, NONE, NONE) == []
    store.grow(10)
    cases.fill_store(store)
    assert open_soft_labels(store.path).read(np.arange(10), 1).ids.shape == (1, 10, 4)


@on_both
def test_a_store_appears_whole_or_not_at_all(
    location: Path, monkeypatch: pytest.MonkeyPatch, cases: Any
) -> None:
    """A creation that dies leaves no store, and no obstacle; a second one of a name is refused."""

    def dying(*_: Any) -> None:
        raise Killed

    path = location / "labels" / "a.zarr"
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.store.opening.write_attributes", dying)
        with pytest.raises(Killed):
            create_soft_labels(path, cases.schema_of(k=3))
    assert not is_local(path) or list(path.parent.iterdir()) == []
    assert not has_store(path)
    with pytest.raises(StoreError, match="no soft-label store"):
        open_soft_labels(path)
    store = create_soft_labels(path, cases.schema_of())
    cases.fill_store(store, np.arange(3))
    assert open_soft_labels(path).read(np.arange(3), 1).ids.shape == (1, 3, 4)
    with pytest.raises(StoreError, match="there already"):
        create_soft_labels(path, cases.schema_of())
