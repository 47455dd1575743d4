"""Rows of shards in memory: which are refused, and that threads read a shard once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from pipeline.store import SoftLabelStore, open_soft_labels
from storage_schemas.errors import StoreError


@pytest.mark.parametrize("view", [-1, 2])
def test_a_view_outside_the_store_is_refused(full_store: SoftLabelStore, view: int):
    """It is never read as another view's label."""
    with pytest.raises(StoreError, match="view"):
        full_store.fetch_quantised(np.arange(3), np.full(3, view))


def test_threads_read_each_shard_once(full_store: SoftLabelStore, monkeypatch):
    """However many ask for its rows at a time, and all get what one reader gets."""
    rows = np.random.default_rng(0).permutation(full_store.schema.num_rows)
    wanted = full_store.fetch_quantised(rows, rows % 2)
    store = open_soft_labels(full_store.path)
    read, places = store._files.read, []

    def counted(view, shard):
        places.append((view, shard))
        return read(view, shard)

    monkeypatch.setattr(store._files, "read", counted)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: store.fetch_quantised(rows, rows % 2), range(8)))
    assert len(places) == len(set(places)) == 6
    for values in found:
        for one, other in zip(values, wanted, strict=True):
            np.testing.assert_array_equal(one, other)
