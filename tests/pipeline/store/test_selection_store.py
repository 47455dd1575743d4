"""Stores of top_p and sampled labels: written, checked, read and summarised like any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.store import (
    SoftLabelStore,
    create_soft_labels,
    inspect_store,
    open_soft_labels,
    verify_store,
)
from pipeline.store.labelled_rows import label_problems
from storage_schemas.errors import SchemaMismatchError
from storage_schemas.soft_labels import SoftLabelSchema, decode, encode, encode_counts

ROWS = np.arange(20, 260)
FIELDS: dict[str, dict[str, Any]] = {
    "top_k": {},
    "top_p": {"selection": "top_p", "top_p": 0.9},
    "sampled": {"selection": "sampled", "temperatures": (2.0,)},
}


def labels_of(schema: SoftLabelSchema, rows: Any, view: int) -> Any:
    """Codes of rows in a view, with 1 to K ranks where the selection has that."""
    rng = np.random.default_rng((view, len(rows)))
    order = rng.permuted(np.tile(np.arange(schema.num_classes), (len(rows), 1)), axis=1)
    ids = order[:, : schema.k].copy()
    kept = rng.integers(1, schema.k + 1, len(rows))
    if schema.selection != "top_k":
        ids[np.arange(schema.k) >= kept[:, None]] = -1
    if schema.selection == "sampled":
        counts = np.where(ids >= 0, 1, 0)
        counts[:, 0] += schema.k - kept
        return encode_counts(schema, ids, counts)
    logits = -np.sort(-rng.normal(0, 3, ids.shape), axis=1)
    return encode(schema, ids, logits, rng.uniform(-1, 5, (len(rows), len(schema.temperatures))))


@pytest.fixture(params=FIELDS)
def store(request: Any, tmp_path: Path, cases: Any) -> SoftLabelStore:
    """A store of 300 rows in 3 shards and 2 views, of which 240 rows are labelled."""
    made = create_soft_labels(tmp_path / "store.zarr", cases.schema_of(**FIELDS[request.param]))
    for view, shard in np.ndindex(2, 3):
        inside = ROWS[shard == ROWS // 128] - shard * 128
        ids, gaps = made.empty_shard()
        ids[inside], gaps[inside] = labels_of(made.schema, inside, view)
        made.write_shard(view, shard, ids, gaps)
    return open_soft_labels(made.path, expected=made.schema)


def test_what_was_written_is_read(store: SoftLabelStore) -> None:
    """After a round trip over the disk, every row decodes to what was encoded."""
    schema = store.schema
    t = schema.temperatures[-1]
    for view, shard in np.ndindex(2, 3):
        rows = ROWS[shard == ROWS // 128]
        expected = decode(schema, *labels_of(schema, rows - shard * 128, view), t)
        found = store.read(rows, view, t)
        ids = np.where(expected.ids < 0, -1, schema.num_classes - 1 - expected.ids)
        np.testing.assert_array_equal(found.ids[0], ids)
        np.testing.assert_array_equal(found.log_probs[0], expected.log_probs)
        np.testing.assert_array_equal(found.log_tail[0], expected.log_tail)
    assert verify_store(store, "full") == []
    shares = (found.ids[0] >= 0).sum(dim=1)
    assert (shares.min() < schema.k) == (schema.selection != "top_k")


def test_summary_agrees_with_the_labels(store: SoftLabelStore) -> None:
    """Entropy spreads the tail over the classes that are not stored in that row."""
    schema = store.schema
    found = inspect_store(store.path)
    t = schema.temperatures[0]
    batches = [store.read(ROWS, view, t) for view in range(2)]
    ids, log_p, log_tail = (
        np.concatenate([getattr(batch, name)[0].numpy() for batch in batches]).astype(float)
        for name in ("ids", "log_probs", "log_tail")
    )
    p, tail = np.exp(log_p), np.exp(log_tail)
    outside = schema.num_classes - (ids >= 0).sum(axis=1)
    spread = [
        tail[at] * (log_tail[at] - np.log(outside[at])) if tail[at] else 0 for at in range(480)
    ]
    entropy = -np.where(p > 0, p * np.where(p > 0, log_p, 0), 0).sum(axis=1) - np.array(spread)
    assert found.entropy_mean == pytest.approx(entropy.mean(), rel=1e-5)
    assert found.tail_mean == pytest.approx(tail.mean(), rel=1e-5)
    assert (found.labels, found.is_healthy) == (480, True)
    assert (found.selection, found.top_p) == (schema.selection, schema.top_p)
    lazy = store.to_dask(t)
    assert float(np.nanmean(lazy["entropy"].compute())) == pytest.approx(entropy.mean(), rel=1e-5)


@pytest.mark.parametrize("selection", FIELDS)
def test_every_torn_row_is_seen(selection: str, cases: Any) -> None:
    """Any single value of a sound row that turns into fill, or out of it, is a problem."""
    schema = cases.schema_of(num_classes=9, **FIELDS[selection])
    whole = labels_of(schema, np.arange(6), 0)
    labelled, problems = label_problems(schema, *whole)
    assert (labelled.tolist(), problems) == ([True] * 6, [])
    for name, fill in ((0, schema.ids_fill), (1, schema.gaps_fill)):
        for row, column in np.ndindex(whole[name].shape):
            torn = [part.copy() for part in whole]
            torn[name][row, column] = 1 if torn[name][row, column] == fill else fill
            assert label_problems(schema, *torn)[1] != [], (name, row, column)


@pytest.mark.parametrize(
    ("counts", "problem"),
    [([2, 1, 255], True), ([1, 2, 1], True), ([4, 0, 255], True), ([3, 1, 255], False)],
)
def test_counts_of_other_draws_are_seen(counts: list[int], problem: bool, cases: Any) -> None:
    """Counts that do not sum to K, rise, or are 0 cannot be written."""
    schema = cases.schema_of(k=4, selection="sampled", temperatures=(1.0,))
    ids = np.array([[5, 2, 65535 if counts[2] == 255 else 1, 65535]], np.uint16)
    gaps = np.array([[*counts, 255]], np.uint8)
    assert bool(label_problems(schema, ids, gaps)[1]) == problem


def test_another_selection_is_refused_on_opening(store: SoftLabelStore, cases: Any) -> None:
    """A reader that expects another selection is told which one it finds."""
    other = "top_p" if store.schema.selection != "top_p" else "sampled"
    with pytest.raises(SchemaMismatchError, match=f"selection must be '{other}'"):
        open_soft_labels(store.path, expected=cases.schema_of(**FIELDS[other]))
