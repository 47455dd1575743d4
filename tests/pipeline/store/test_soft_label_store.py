"""Stores: what was written is read back, whoever reads."""

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

from pipeline.store import SoftLabelStore, create_soft_labels, open_soft_labels, shard_layout
from pipeline.store.row_reader import ShardCache
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
NONE = np.zeros(0, np.int64)
ROWS = np.arange(300)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"activation": "sigmoid"},
        {"precision": "exact", "temperatures": (0.5, 1.0, 3.0)},
        {"k": 1, "temperatures": (1.0,)},
        {"k": 12},
        {"num_classes": 70_000, "k": 40},
        {"global_ids": tuple(range(12))},
        {"global_ids": tuple(range(5, 17))},
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


@pytest.mark.parametrize("first", [0, 5, None])
def test_absent_ranks_have_no_global_id(tmp_path: Path, cases: Any, first: int | None) -> None:
    """Where nothing is stored the id is -1, however the teacher's classes are numbered."""
    numbered = {} if first is None else {"global_ids": tuple(range(first, first + 12))}
    schema = cases.schema_of(selection="top_p", top_p=0.9, **numbered)
    store = create_soft_labels(tmp_path / "a.zarr", schema)
    ids, gaps = store.empty_shard()
    ids[0, :2], gaps[0, 0] = (3, 11), 7
    found = store.decode(ids, gaps)
    assert found.ids[0].tolist() == [schema.global_ids[3], schema.global_ids[11], -1, -1]
    assert (found.ids[1:] == -1).all()


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
    cache = ShardCache(1)
    small = open_soft_labels(full_store.path, cache=cache)
    rows = np.random.default_rng(0).integers(0, 300, 64)
    for view in (0, 1, 0):
        a, b = small.read(rows, view), full_store.read(rows, view)
        assert torch.equal(a.ids, b.ids)
        assert torch.equal(a.log_probs, b.log_probs)
    assert len(cache._entries) == 1


def test_stores_that_share_a_cache_have_its_room_together(
    full_store: SoftLabelStore, cases: Any
) -> None:
    """Shards used last stay, whose they ever are; both stores read what is theirs."""
    other = create_soft_labels(full_store.path.with_name("other.zarr"), cases.schema_of())
    ids, gaps = cases.shard_labels(other, 0, 1)
    ids[:, :2] = ids[:, 1::-1]
    other.write_shard(0, 0, ids, gaps)
    cache = ShardCache(3 * (ids.nbytes + gaps.nbytes))
    one, two = (open_soft_labels(store.path, cache=cache) for store in (full_store, other))
    rows = np.arange(128)
    for _ in range(2):
        np.testing.assert_array_equal(two.fetch_quantised(rows, 0 * rows)[0], ids)
        for shard in range(2):
            found = one.fetch_quantised(rows + 128 * shard, 0 * rows)
            np.testing.assert_array_equal(found[0], cases.shard_labels(one, 0, shard)[0])
    assert {(path.name, shard) for path, _, shard in cache._entries} == {
        ("other.zarr", 0),
        ("store.zarr", 0),
        ("store.zarr", 1),
    }
    one.fetch_quantised(rows[:44] + 256, 0 * rows[:44])
    assert (other.path, 0, 0) not in cache._entries
    copies = pickle.loads(pickle.dumps((one, two)))
    assert copies[0]._cache is copies[1]._cache


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
