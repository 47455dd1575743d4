"""What inspect samples, counts and reads in its own quick way equals the plain way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.store import SoftLabelStore, create_soft_labels, inspect_store
from pipeline.store.inspect import _places
from pipeline.store.layout import shard_file
from pipeline.store.pair_counts import LARGEST_PAIRS, count_pairs, merge_pairs
from pipeline.store.shard_bytes import decode_shard_bytes, is_plain
from storage_schemas.errors import CorruptLabelError


def test_a_sample_is_spread_over_shards_and_views(tmp_path: Path, cases: Any):
    """A tenth of the labels is whole chunks, from every shard of every view, in other places."""
    schema = cases.schema_of(num_rows=64 * 40, shard_rows=640, chunk_rows=16, num_views=3)
    store = create_soft_labels(tmp_path / "a.zarr", schema)
    cases.fill_store(store)
    places = list(_places(store, 3 * 64 * 4))
    rows = [{(p.shard, s.start) for p in places if p.view == v for s in p.sampled} for v in (0, 1)]
    assert all(place.sampled for place in places)
    assert {len(span) % 16 for place in places for span in place.sampled} == {0}
    assert sum(len(span) for place in places for span in place.sampled) == 3 * 64 * 4
    assert rows[0] != rows[1]
    part, whole = inspect_store(store.path, sampled_labels=768), inspect_store(store.path)
    assert (part.sampled, whole.sampled) == (768, 7680)
    assert part.labels == whole.labels == 7680
    assert part.class_counts == whole.class_counts
    assert part.entropy_mean == pytest.approx(whole.entropy_mean, rel=0.1)


def test_bound_is_the_entropy_of_the_symbols(full_store: SoftLabelStore):
    """Bytes of the bound equal the zeroth-order entropy of each stored column."""
    stored = [full_store.read_shard(v, s) for v, s in np.ndindex(2, 3)]
    found = inspect_store(full_store.path)
    for at, value in enumerate((found.ids_bound_bytes, found.gaps_bound_bytes)):
        columns = np.concatenate([pair[at] for pair in stored]).T
        bits = 0.0
        for column in columns:
            shares = np.unique(column, return_counts=True)[1] / len(column)
            bits -= float((shares * np.log2(shares)).sum())
        assert value == pytest.approx(bits / 8, rel=1e-12)
    files = [f for f in (full_store.path / "ids").rglob("*") if f.is_file()]
    assert found.ids_bytes == sum(file.stat().st_size for file in files) / 600


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=200), st.data())
def test_pairs_are_exact_in_any_order(pairs: list[tuple[int, int]], data: Any):
    """Counts of parts merged in any way equal the counts of the whole."""
    cut = data.draw(st.integers(0, len(pairs)))
    table = np.array(pairs, np.int64).reshape(-1, 2)
    parts = [count_pairs(part[:, 0], part[:, 1], 31) for part in (table[:cut], table[cut:])]
    merged = merge_pairs(parts)
    codes, counts = np.unique(table[:, 0] * 31 + table[:, 1], return_counts=True)
    assert merged.missing == 0
    assert dict(zip(merged.codes.tolist(), merged.counts.tolist(), strict=True)) == dict(
        zip(codes.tolist(), counts.tolist(), strict=True)
    )


def test_too_many_pairs_keep_the_frequent_ones():
    """Past the limit memory is bounded, no count is too large, and none lacks more than it says."""
    rng = np.random.default_rng(0)
    classes = 40_000
    truth: dict[int, int] = {}
    parts = []
    for _ in range(3):
        rare = rng.integers(0, classes, (60_000, 2))
        table = np.concatenate([rare, np.repeat([[7, 9], [1, 2]], 500, axis=0)])
        parts.append(count_pairs(table[:, 0], table[:, 1], classes))
        for code, count in zip(*np.unique(table @ [classes, 1], return_counts=True), strict=True):
            truth[int(code)] = truth.get(int(code), 0) + int(count)
    merged = merge_pairs(parts)
    assert len(merged.codes) <= LARGEST_PAIRS
    assert merged.missing > 0
    found = dict(zip(merged.codes.tolist(), merged.counts.tolist(), strict=True))
    assert all(0 <= truth[code] - count <= merged.missing for code, count in found.items())
    assert {7 * classes + 9, classes + 2} <= set(found)
    assert max(count for code, count in truth.items() if code not in found) <= merged.missing


def test_quick_reader_equals_zarr(full_store: SoftLabelStore):
    """The bytes of a shard decode to what zarr reads, in whole and in cut shards."""
    schema = full_store.schema
    for array, codec in zip(schema.stored_arrays, ("blosc", "zstd"), strict=True):
        document = json.loads((full_store.path / array.name / "zarr.json").read_text())
        assert is_plain(document)
        by_zarr = zarr.open_array(full_store.path / array.name, mode="r")
        for view, shard in np.ndindex(2, 3):
            content = shard_file(full_store.path, array.name, view, shard).read_bytes()
            found = decode_shard_bytes(
                content, (128, *array.cell), 32, array.dtype, array.fill, codec=codec
            )
            assert found is not None
            wanted = np.asarray(by_zarr[view, 128 * shard : 128 * (shard + 1)])
            np.testing.assert_array_equal(found[: len(wanted)], wanted)
            assert (found[len(wanted) :] == array.fill).all()


@pytest.mark.parametrize("change", ["flip", "cut", "empty", "swap"])
def test_quick_reader_never_returns_other_labels(full_store: SoftLabelStore, change: str):
    """A damaged, torn, empty or exchanged file of ids is an error, never other values."""
    crc = int(full_store.commits[0, 0, 1])
    assert len(full_store.read_shard_ids(0, 0, crc)) == 128
    file = shard_file(full_store.path, "ids", 0, 0)
    content = file.read_bytes()
    rng = np.random.default_rng(0)
    other = shard_file(full_store.path, "ids", 1, 0).read_bytes()
    for at in rng.integers(0, len(content), 40 if change == "flip" else 1).tolist():
        flipped = content[:at] + bytes([content[at] ^ (1 << int(rng.integers(8)))])
        flipped += content[at + 1 :]
        file.write_bytes(
            {"flip": flipped, "cut": content[:at], "empty": b"", "swap": other}[change]
        )
        with pytest.raises(CorruptLabelError, match=r"ids, view 0, shard 0"):
            full_store.read_shard_ids(0, 0, crc)
