"""Which labels exist, where rows were added and retired between two labellings."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.store import SoftLabelStore
from pipeline.store.coverage import labelled_views, missing_labels

NONE = np.zeros(0, np.int64)


def test_a_retired_row_does_not_hide_a_new_one(full_store: SoftLabelStore) -> None:
    """A shard with as many labels as expected, but of other rows, is missing."""
    full_store.grow(310)
    retired = np.array([*range(10), 299])
    rows = np.array([*range(10, 299), 305])
    assert missing_labels(full_store, rows, retired) == [(0, 2), (1, 2)]
    assert missing_labels(full_store, rows[:-1], retired) == []


def test_a_row_that_comes_back_is_not_hidden_by_one_that_goes(
    empty_store: SoftLabelStore, cases: Any
) -> None:
    """A row retired before its shard was written, and back in place of another, is missing."""
    cases.fill_store(empty_store, np.delete(np.arange(300), 7))
    assert missing_labels(empty_store, np.delete(np.arange(300), 7), np.array([7])) == []
    rows = np.delete(np.arange(300), 9)
    assert missing_labels(empty_store, rows, np.array([9])) == [(0, 0), (1, 0)]
    found = labelled_views(empty_store, rows, np.array([9]))
    assert np.argwhere(~found).tolist() == [[0, 7], [1, 7]]


def test_shards_are_read_only_where_counts_do_not_settle_it(
    full_store: SoftLabelStore, monkeypatch: Any
) -> None:
    """Rows retired after they were labelled cost no reading, however many they are."""
    read: list[tuple[int, int]] = []
    original = SoftLabelStore.read_shard

    def spy(self: SoftLabelStore, view: int, shard: int) -> Any:
        read.append((view, shard))
        return original(self, view, shard)

    monkeypatch.setattr(SoftLabelStore, "read_shard", spy)
    assert missing_labels(full_store, np.arange(0, 300, 2), np.arange(1, 300, 2)) == []
    assert read == []
    full_store.grow(301)
    assert missing_labels(full_store, np.arange(301), NONE) == [(0, 2), (1, 2)]
    assert read == [(0, 2), (1, 2)]


def test_rows_past_the_end_and_shards_without_a_record_have_no_label(
    full_store: SoftLabelStore,
) -> None:
    """What the store has no room for, or does not vouch for, does not exist."""
    full_store.discard_shard(1, 0)
    rows = np.array([0, 127, 128, 299, 300, 900])
    found = labelled_views(full_store, rows, np.setdiff1d(np.arange(300), rows))
    assert found.tolist() == [[True] * 4 + [False] * 2, [False] * 2 + [True] * 2 + [False] * 2]
    shards = [(0, 2), (0, 7), (1, 0), (1, 2), (1, 7)]
    assert missing_labels(full_store, rows, np.setdiff1d(np.arange(300), rows)) == shards
