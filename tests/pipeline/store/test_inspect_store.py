"""Summaries count what is there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.store import SoftLabelStore, create_soft_labels, inspect_store
from pipeline.store.layout import shard_file
from storage_schemas.errors import StoreError


@pytest.mark.parametrize("location", ["local", "s3"], indirect=True)
def test_summary_agrees_with_the_labels(empty_store: SoftLabelStore, cases: Any) -> None:
    """Counts, coverage, size, entropy, tail and classes equal those computed from reads."""
    rows = np.arange(20, 260)
    cases.fill_store(empty_store, rows)
    found = inspect_store(empty_store.path)
    assert found.labels_per_view == (240, 240)
    assert found.coverage == (0.8, 0.8)
    assert (found.shards, found.shards_committed) == (3, 6)
    files = [file for file in empty_store.path.rglob("*") if file.is_file()]
    assert found.size_bytes == sum(file.stat().st_size for file in files)
    assert found.bytes_per_label == found.size_bytes / 480
    batches = [empty_store.read(rows, view) for view in range(2)]
    log_p = np.concatenate([b.log_probs[0].numpy() for b in batches]).astype(float)
    log_tail = np.concatenate([b.log_tail[0].numpy() for b in batches]).astype(float)
    tail = np.exp(log_tail)
    entropy = -(np.exp(log_p) * log_p).sum(1) - tail * (log_tail - np.log(8))
    assert found.entropy_mean == pytest.approx(entropy.mean(), rel=1e-5)
    assert found.tail_mean == pytest.approx(tail.mean(), rel=1e-5)
    assert sum(found.entropy_counts) == 480
    assert len(found.entropy_edges) == len(found.entropy_counts) + 1
    first = np.concatenate([b.ids[0, :, 0].numpy() for b in batches])
    counts = np.bincount(first, minlength=12)
    names = {f"birds/{11 - at}": int(count) for at, count in enumerate(counts) if count}
    assert dict(found.top_classes) == names
    assert [count for _, count in found.top_classes] == sorted(names.values(), reverse=True)
    assert found.is_healthy


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_entropy_histogram_holds_every_label(tmp_path: Path, activation: str, cases: Any) -> None:
    """Labels of the largest possible entropy still fall into a bin."""
    schema = cases.schema_of(activation=activation, k=2, num_classes=2, temperatures=(1.0,))
    store = create_soft_labels(tmp_path / "a", schema)
    ids, gaps = store.empty_shard()
    ids[:5], gaps[:5] = [0, 1], 0
    gaps[:5, -1] = 128 if activation == "sigmoid" else 0
    store.write_shard(0, 0, ids, gaps)
    found = inspect_store(store.path)
    assert sum(found.entropy_counts) == found.entropy_counts[-1] == 5
    size = 2 if activation == "sigmoid" else 1
    assert found.entropy_mean == pytest.approx(size * np.log(2), rel=1e-5)


def test_damage_is_listed_and_not_counted(full_store: SoftLabelStore) -> None:
    """A damaged shard is a problem of the summary, and its labels are left out."""
    file = shard_file(full_store.path, "gaps", 1, 0)
    file.write_bytes(file.read_bytes()[:-20])
    found = inspect_store(full_store.path)
    assert found.labels_per_view == (300, 172)
    assert len(found.problems) == 1
    assert not found.is_healthy


def test_an_empty_store_has_a_summary(empty_store: SoftLabelStore) -> None:
    """No labels is no error, and the JSON form is JSON."""
    found = inspect_store(empty_store.path)
    assert (found.labels, found.bytes_per_label, found.entropy_mean) == (0, 0.0, 0.0)
    assert json.loads(json.dumps(found.to_dict()))["teacher"] == "birds"


def test_no_store_no_summary(tmp_path: Path) -> None:
    """A path without a store is a plain error."""
    with pytest.raises(StoreError, match="no soft-label store"):
        inspect_store(tmp_path / "x")
