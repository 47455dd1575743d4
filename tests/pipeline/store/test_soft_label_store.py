"""Stores: what was written is read back, and a write that did not end is not done."""

from __future__ import annotations

import itertools
import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import dask
import google_crc32c
import numpy as np
import pytest
import torch

from pipeline.locations import is_local
from pipeline.store import SoftLabelStore, create_soft_labels, open_soft_labels, shard_layout
from pipeline.store import commit as commit_module
from pipeline.store.opening import has_store
from pipeline.store.shards import ShardFiles
from storage_schemas.errors import (
    ConfigError,
    LabelSpaceError,
    MissingLabelError,
    SchemaMismatchError,
    StoreError,
)
from storage_schemas.label_space import LabelSpace
from storage_schemas.soft_labels import decode

on_both = pytest.mark.parametrize("location", ["local", "s3"], indirect=True)
COUNTS = np.array([128, 128, 44])


class Killed(BaseException):
    """Stands for the death of the process."""


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"activation": "sigmoid"},
        {"precision": "exact", "temperatures": (0.5, 1.0, 3.0)},
        {"k": 1, "temperatures": (1.0,)},
        {"k": 12},
        {"num_classes": 70_000, "k": 40},
        {"num_rows": 3, "shard_rows": 1024, "chunk_rows": 1024},
    ],
)
def test_reading_gives_what_was_written(tmp_path: Path, fields: dict[str, Any], cases: Any) -> None:
    """Any rows of a view, in any order, decode to the labels that were written."""
    schema = cases.schema_of(**fields)
    cases.fill_store(create_soft_labels(tmp_path / "a.zarr", schema))
    store = open_soft_labels(tmp_path / "a.zarr")
    rows = np.random.default_rng(0).integers(0, schema.num_rows, 50)
    for view, temperature in itertools.product(range(2), schema.temperatures):
        batch = store.read(rows, view, temperature)
        expected = decode(schema, *cases.labels_of(schema, rows, view), temperature)
        global_ids = np.array(schema.global_ids)[expected.ids]
        assert batch.ids.shape == (1, 50, schema.k)
        np.testing.assert_array_equal(batch.ids[0].numpy(), global_ids)
        np.testing.assert_array_equal(batch.log_probs[0].numpy(), expected.log_probs)
        np.testing.assert_array_equal(batch.log_tail[0].numpy(), expected.log_tail)
        assert not batch.teacher.any()
        assert batch.log_probs.dtype == torch.float32


@on_both
def test_fetch_takes_a_view_per_row(full_store: SoftLabelStore) -> None:
    """Rows of several views and shards come back in the order asked for."""
    rng = np.random.default_rng(0)
    rows, views = rng.integers(0, 300, 64), rng.integers(0, 2, 64)
    found = full_store.fetch(rows, views, temperature=2.0)
    for position in range(64):
        one = full_store.read(rows[position : position + 1], int(views[position]), 2.0)
        np.testing.assert_array_equal(found.ids[position], one.ids[0, 0].numpy())
        np.testing.assert_array_equal(found.log_probs[position], one.log_probs[0, 0].numpy())


def test_cache_is_bounded_and_changes_nothing(full_store: SoftLabelStore) -> None:
    """A store without room for a second shard reads the same labels."""
    small = open_soft_labels(full_store.path, cache_bytes=1)
    rows = np.random.default_rng(0).integers(0, 300, 64)
    for view in (0, 1, 0):
        a, b = small.read(rows, view), full_store.read(rows, view)
        assert torch.equal(a.ids, b.ids)
        assert torch.equal(a.log_probs, b.log_probs)
    assert len(small._rows._cached) == 1


@on_both
def test_golden_bytes(empty_store: SoftLabelStore) -> None:
    """Types, values and checksums of a fixed shard never change, and are those specified."""
    ids, gaps = empty_store.empty_shard()
    ids[2], gaps[2] = [7, 0, 11, 3], [5, 0, 254, 24, 31]
    ids[43], gaps[43] = [1, 2, 3, 4], [0, 0, 1, 0, 254]
    assert empty_store.write_shard(1, 2, ids, gaps) == (2, 2938444820, 3332357769)
    for name, values, crc in zip(
        ("ids", "gaps"), (ids, gaps), (2938444820, 3332357769), strict=True
    ):
        place = f"{empty_store.schema.fingerprint}/{name}/1/2/".encode()
        assert google_crc32c.value(place + values.tobytes()) == crc
    commits = empty_store.commits
    assert commits.dtype == np.uint32
    assert commits[1, 2].tolist() == [2, 2938444820, 3332357769]
    assert np.count_nonzero(commits) == 3
    found = empty_store.read_shard(1, 2)
    np.testing.assert_array_equal(found[0], ids[:44])
    np.testing.assert_array_equal(found[1], gaps[:44])
    assert (found[0].dtype, found[1].dtype) == (np.uint16, np.uint8)


def test_other_implementations_read_the_same(full_store: SoftLabelStore, cases: Any) -> None:
    """Tensorstore reads ids, gaps and commits equal to what was written."""
    tensorstore = pytest.importorskip("tensorstore")
    schema = full_store.schema
    arrays = {}
    for name in ("ids", "gaps", "commits"):
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": ""}}
        spec["kvstore"]["path"] = str(full_store.path / name)
        arrays[name] = tensorstore.open(spec, read=True).result().read().result()
    for view in range(2):
        ids, gaps = cases.labels_of(schema, np.arange(300), view)
        np.testing.assert_array_equal(arrays["ids"][view], ids)
        np.testing.assert_array_equal(arrays["gaps"][view], gaps)
    np.testing.assert_array_equal(arrays["commits"], full_store.commits)


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
    """Wherever a first or second write of a shard ends, missing_shards names the shard."""
    if rewrite:
        cases.fill_store(empty_store)
    done = list(empty_store.missing_shards(COUNTS))
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
    assert store.missing_shards(COUNTS) == sorted({*done, (1, 1)})
    with pytest.raises(MissingLabelError, match="view 1, shard 1"):
        store.read_shard(1, 1)
    store.write_shard(1, 1, *labels)
    assert (1, 1) not in store.missing_shards(COUNTS)
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
def test_rows_that_were_not_labelled_are_refused(empty_store: SoftLabelStore, cases: Any) -> None:
    """A row outside the labelled span, inside it, or in an absent shard raises, and is named."""
    rows = np.array([*range(20, 40), *range(60, 100)])
    cases.fill_store(empty_store, rows)
    assert empty_store.commits[:, 0, 0].tolist() == [60, 60]
    empty_store.read(rows, 0)
    for missing in (5, 50, 110):
        with pytest.raises(MissingLabelError, match=str(missing)):
            empty_store.read(np.array([25, missing]), 0)
    with pytest.raises(StoreError, match=r"0\.\.299"):
        empty_store.read(np.array([300]), 0)
    with pytest.raises(StoreError, match="view"):
        empty_store.read(np.array([25]), 2)


def test_empty_batches_are_fine(empty_store: SoftLabelStore) -> None:
    """No rows give an empty batch."""
    assert empty_store.read(np.array([], np.int64), 0).ids.shape == (1, 0, 4)


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
    assert store.missing_shards(np.array([128, 128, 44, 0])) == []
    new = [(0, 2), (0, 3), (1, 2), (1, 3)]
    assert store.missing_shards(np.array([128, 128, 128, 116])) == new
    for view, shard in new:
        store.write_shard(view, shard, *cases.shard_labels(store, view, shard))
    assert store.missing_shards(np.array([128, 128, 128, 116])) == []
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
    assert store.missing_shards(np.zeros(0, int)) == []
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


@on_both
def test_opening_compares_with_what_is_expected(full_store: SoftLabelStore, cases: Any) -> None:
    """Another teacher, k and weights: all three are named."""
    expected = cases.schema_of(teacher="cars", k=3, fingerprint_parts={"weights": "other"})
    with pytest.raises(SchemaMismatchError) as caught:
        open_soft_labels(full_store.path, expected=expected)
    assert len(caught.value.problems) == 3
    open_soft_labels(full_store.path, expected=cases.schema_of())


def test_opening_in_a_label_space_maps_by_name(full_store: SoftLabelStore) -> None:
    """Global ids are those of the space given; a space without the classes is refused."""
    names = tuple(f"birds/{i}" for i in range(12))
    space = LabelSpace(classes=("new/first", *names))
    store = open_soft_labels(full_store.path, space=space)
    local, _ = store.read_shard(0, 0)
    np.testing.assert_array_equal(store.read(np.arange(9), 0).ids[0].numpy(), local[:9] + 1)
    assert store.label_map.global_ids.tolist() == list(range(1, 13))
    with pytest.raises(LabelSpaceError, match="11"):
        open_soft_labels(full_store.path, space=LabelSpace(classes=names[:11]))


def test_undeclared_temperature_is_refused(full_store: SoftLabelStore) -> None:
    """Every way to read lists the declared temperatures."""
    for read in (
        lambda: full_store.read(np.arange(3), 0, 3.0),
        lambda: full_store.fetch(np.arange(3), np.zeros(3, int), temperature=3.0),
        lambda: full_store.to_dask(3.0),
    ):
        with pytest.raises(SchemaMismatchError, match=r"\[1\.0, 2\.0\], got 3\.0"):
            read()


@on_both
def test_a_handle_can_be_pickled(full_store: SoftLabelStore) -> None:
    """A worker that receives the handle reads the same labels, also after its parent did."""
    mine = full_store.read_shard(1, 2)
    copy = pickle.loads(pickle.dumps(full_store))
    assert torch.equal(copy.read(np.arange(20), 1).ids, full_store.read(np.arange(20), 1).ids)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        for ours, theirs in zip(mine, pool.apply(full_store.read_shard, (1, 2)), strict=True):
            np.testing.assert_array_equal(ours, theirs)


@on_both
def test_dask_equals_read(empty_store: SoftLabelStore, cases: Any) -> None:
    """Lazy arrays hold what read returns, and nothing where nothing was written."""
    cases.fill_store(empty_store, np.arange(10, 200))
    lazy = empty_store.to_dask(2.0)
    assert lazy["ids"].chunks == ((1, 1), (128, 128, 44), (4,))
    found = dask.compute(lazy, scheduler="synchronous")[0]
    for view in range(2):
        batch = empty_store.read(np.arange(10, 200), view, 2.0)
        for name in ("ids", "log_probs", "log_tail"):
            expected = getattr(batch, name)[0].numpy()
            np.testing.assert_array_equal(found[name][view, 10:200], expected)
            assert found[name].dtype == lazy[name].dtype == expected.dtype
    assert (found["ids"][:, :10] == -1).all()
    assert (found["ids"][:, 200:] == -1).all()
    assert np.isneginf(found["log_probs"][:, 250]).all()
    assert np.isnan(found["entropy"][:, 200:]).all()
    p = np.exp(found["log_probs"][:, 10:200].astype(float))
    tail = np.exp(found["log_tail"][:, 10:200].astype(float))
    entropy = -(p * np.log(p)).sum(-1) - tail * np.log(tail / 8)
    np.testing.assert_allclose(found["entropy"][:, 10:200], entropy, rtol=1e-5)


def test_default_layout() -> None:
    """Shards are powers of two within bounds, and hold whole chunks."""
    assert shard_layout(0) == (4096, 4096)
    assert shard_layout(37_265) == (4096, 4096)
    assert shard_layout(1_281_167) == (131_072, 16_384)
    assert shard_layout(10**9) == (262_144, 16_384)
    assert shard_layout(10**6, shard_rows=3000) == (3000, 3000)
    assert shard_layout(10**6, shard_rows=64, chunk_rows=16) == (64, 16)
    assert shard_layout(100, chunk_rows=4096) == (4096, 4096)
    with pytest.raises(ConfigError, match="multiple"):
        shard_layout(10, shard_rows=100, chunk_rows=64)
