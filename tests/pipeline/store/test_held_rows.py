"""Rows kept in memory: where they stand, and that they are what the store would say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.store import SoftLabelStore, create_soft_labels
from pipeline.store.held_rows import RowIndex
from storage_schemas.errors import MissingLabelError, StoreError

ROWS = np.arange(300)


@pytest.mark.parametrize("rows", [[4, 5, 6], [2, 3, 7, 9], [0, 10**9], []])
def test_rows_are_found_where_they_stand(rows):
    """By a table or by search; a row that is not there gives nothing."""
    held = np.array(rows, np.int64)
    index = RowIndex(held)
    if rows:
        found = index.find(held[::-1])
        assert found is not None
        assert found.tolist() == list(range(len(rows)))[::-1]
        for absent in (held[0] - 1, held[-1] + 1, held[0] + 4):
            assert index.find(np.array([held[0], absent])) is None
    else:
        assert index.find(np.array([3])) is None


def assert_same(found: Any, wanted: Any) -> None:
    """All parts have the same types and bits."""
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("rows", [ROWS, ROWS[7:180], ROWS[ROWS % 3 > 0], ROWS[[0, 299]]])
def test_held_rows_have_the_bits_of_the_store(full_store: SoftLabelStore, rows: np.ndarray) -> None:
    """In any order and view, at the temperature they are held for and at another."""
    rng = np.random.default_rng(0)
    asked, views = rng.choice(rows, 200), rng.integers(0, 2, 200)
    wanted = {t: full_store.fetch(asked, views, temperature=t) for t in (1.0, 2.0)}
    full_store.hold(rows, temperature=2.0)
    for temperature, labels in wanted.items():
        assert_same(full_store.fetch(asked, views, temperature=temperature), labels)
    assert_same(full_store.fetch(ROWS, ROWS % 2), full_store.decode(*codes_of(full_store)))


def codes_of(store: SoftLabelStore) -> tuple[np.ndarray, np.ndarray]:
    """The stored values of all rows, views taking turns."""
    return store.fetch_quantised(ROWS, ROWS % 2)


def test_held_rows_are_read_once(full_store: SoftLabelStore, monkeypatch) -> None:
    """Afterwards no shard is asked for; one that is written again is read again."""
    full_store.hold(ROWS)
    before = full_store.fetch(ROWS, 0 * ROWS)
    values = full_store.read_shard(0, 1)
    with monkeypatch.context() as patch:
        patch.setattr(full_store._files, "read", None)
        assert_same(full_store.fetch(ROWS, 0 * ROWS), before)
    full_store.write_shard(0, 1, *(np.roll(part, 1, axis=0) for part in values))
    after = full_store.fetch(ROWS, 0 * ROWS)
    np.testing.assert_array_equal(after.ids[129:256], before.ids[128:255])


def test_views_that_are_not_held_are_refused(full_store: SoftLabelStore) -> None:
    """Where only some views of a row count, the others are never read, and are named."""
    views = np.ones((300, 2), bool)
    views[40, 1] = False
    full_store.hold(ROWS, views)
    full_store.fetch(ROWS, 0 * ROWS)
    with pytest.raises(MissingLabelError, match=r"1 of 3 labels .* rows \[40\], views \[1\]"):
        full_store.fetch(np.array([39, 40, 41]), np.ones(3, np.int64))
    for view in (-1, 2):
        with pytest.raises(StoreError, match="view"):
            full_store.fetch(ROWS[:3], np.full(3, view))


def test_a_row_that_was_not_written_cannot_be_held(empty_store: SoftLabelStore, cases: Any) -> None:
    """It is named at once, not at the batch that has it."""
    cases.fill_store(empty_store, ROWS[ROWS != 70])
    with pytest.raises(MissingLabelError, match=r"rows \[70\], views \[0\]"):
        empty_store.hold(ROWS)
    empty_store.hold(ROWS[ROWS != 70])


@pytest.mark.parametrize(("largest", "bytes_of_ids"), [(32_767, 2), (32_768, 4), (10**6, 4)])
def test_ids_are_held_in_the_smallest_type(
    tmp_path, cases: Any, largest: int, bytes_of_ids: int
) -> None:
    """The largest global id comes back, and absent ranks of a short row stay -1."""
    schema = cases.schema_of(
        global_ids=(*range(11), largest), selection="top_p", top_p=0.9, num_rows=1
    )
    store = create_soft_labels(tmp_path / "store.zarr", schema)
    ids, gaps = store.empty_shard()
    ids[0, :2], gaps[0, 0], gaps[0, 3:] = (11, 3), 7, 20
    store.write_shard(0, 0, ids, gaps)
    zero = np.zeros(1, np.int64)
    wanted = store.fetch(zero, zero)
    assert wanted.ids.tolist() == [[largest, 3, -1, -1]]
    store.hold(zero, np.array([[True, False]]))
    assert_same(store.fetch(zero, zero), wanted)
    assert store.held_label_bytes == 4 * (bytes_of_ids + 4) + 4
