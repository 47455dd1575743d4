"""Two stores side by side: exact agreement, divergences as dense ones, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.store import SoftLabelStore, compare_stores, create_soft_labels
from pipeline.store.layout import shard_file
from storage_schemas.errors import SchemaMismatchError
from storage_schemas.soft_labels import encode

ROWS = 300


def _store(path: Path, cases: Any, seed: int, **fields: Any) -> SoftLabelStore:
    """Write labels of random answers; the first row of each shard is not labelled."""
    schema = cases.schema_of(**fields)
    store = create_soft_labels(path, schema)
    rng = np.random.default_rng(seed)
    for view, shard in np.ndindex(schema.num_views, schema.num_shards):
        rows = np.arange(1, len(store.shard_span(shard)))
        logits = -np.sort(-rng.normal(0, 3, (len(rows), schema.k)), axis=1)
        chosen = np.stack([rng.choice(schema.num_classes, schema.k, replace=False) for _ in rows])
        tails = rng.uniform(-1, 5, (len(rows), len(schema.temperatures)))
        ids, gaps = store.empty_shard()
        ids[rows], gaps[rows] = encode(schema, chosen, logits, tails)
        store.write_shard(view, shard, ids, gaps)
    return store


def _dense(store: SoftLabelStore, view: int, rows: Any, names: list[str], t: float) -> Any:
    """Return (rows, names) float64 probabilities, normalised over these classes, all spread out."""
    schema = store.schema
    labels = store.fetch(rows, np.full(len(rows), view), temperature=t)
    even = np.exp(labels.log_tail.astype(float)) / max(schema.num_classes - schema.k, 1)
    table = np.repeat(even[:, None], schema.num_classes, axis=1)
    local = np.argsort(schema.global_ids)[labels.ids]
    np.put_along_axis(table, local, np.exp(labels.log_probs.astype(float)), axis=1)
    table = table[:, [schema.classes.index(name) for name in names]]
    return table / table.sum(axis=1, keepdims=True)


def _first(store: SoftLabelStore, view: int, rows: Any) -> Any:
    temperature = store.schema.temperatures[0]
    labels = store.fetch(rows, np.full(len(rows), view), temperature=temperature)
    local = np.argsort(store.schema.global_ids)[labels.ids[:, 0]]
    return np.array(store.schema.classes)[local]


def _common(*shards: int) -> Any:
    rows = np.arange(ROWS)
    return rows[np.all([rows % size > 0 for size in shards], axis=0)]


@pytest.mark.parametrize("other", ["same classes", "other classes", "other layout"])
def test_comparison_equals_the_dense_one(tmp_path: Path, cases: Any, other: str):
    """Agreement, pairs and KL equal those of dense float64 answers over the shared classes."""
    fields: dict[str, dict[str, Any]] = {
        "same classes": {"temperatures": (2.0,)},
        "other classes": {
            "num_classes": 10,
            "k": 3,
            "teacher": "owls",
            "classes": tuple(f"birds/{at}" for at in (*range(15, 9, -1), 3, 5, 0, 1)),
            "global_ids": tuple(range(10)),
        },
        "other layout": {"shard_rows": 96, "chunk_rows": 24, "num_views": 3, "k": 12},
    }
    a = _store(tmp_path / "a.zarr", cases, 0)
    b = _store(tmp_path / "b.zarr", cases, 1, **fields[other])
    found = compare_stores(a.path, b.path, sampled_labels=None)
    rows = _common(128, b.schema.shard_rows)
    names = [name for name in a.schema.classes if name in b.schema.classes]
    shared = len(names)
    assert found.classes == (shared, 12 - shared, b.schema.num_classes - shared)
    assert found.temperature == (2.0 if other == "same classes" else 1.0)
    assert found.labels == found.sampled == 2 * len(rows)
    firsts = [(_first(a, v, rows), _first(b, v, rows)) for v in range(2)]
    assert [view.agreed for view in found.views] == [int((x == y).sum()) for x, y in firsts]
    assert [view.both for view in found.views] == [len(rows)] * 2
    pairs: dict[tuple[str, str], int] = {}
    for x, y in zip(*(np.concatenate(side) for side in zip(*firsts, strict=True)), strict=True):
        if x != y:
            pairs[str(x), str(y)] = pairs.get((str(x), str(y)), 0) + 1
    assert {(pair.a, pair.b): pair.labels for pair in found.pairs}.items() <= pairs.items()
    assert [pair.labels for pair in found.pairs] == sorted(pairs.values(), reverse=True)[:20]
    kl = []
    for view in range(2):
        p = _dense(a, view, rows, names, found.temperature)
        q = _dense(b, view, rows, names, found.temperature)
        kl.append(((p * np.log(p / q)).sum(axis=1), (q * np.log(q / p)).sum(axis=1)))
    forward, backward = (np.stack(side) for side in zip(*kl, strict=True))
    assert found.kl_ab == pytest.approx(forward.mean(), rel=1e-5)
    assert found.kl_ba == pytest.approx(backward.mean(), rel=1e-5)
    worst = (forward + backward).max(axis=0)
    assert [row.row for row in found.rows] == rows[np.argsort(-worst)[:20]].tolist()
    top = found.rows[0]
    assert top.kl_ab == pytest.approx(forward[top.view, rows == top.row][0], rel=1e-5)


def test_a_store_agrees_with_itself(full_store: SoftLabelStore):
    """All labels agree, both divergences are 0, no field differs, and the JSON form is JSON."""
    found = compare_stores(full_store.path, full_store.path)
    assert (found.agreement, found.kl_ab, found.kl_ba) == (1.0, 0.0, 0.0)
    assert (found.differences, found.pairs, found.problems) == ((), (), ())
    assert all(row.both == row.a == row.b for row in found.lowest)
    assert json.loads(json.dumps(found.to_dict()))["labels"] == 600


def test_differing_fields_are_all_named(tmp_path: Path, full_store: SoftLabelStore, cases: Any):
    """Every field in which the stores differ in meaning is listed with both values."""
    other = _store(
        tmp_path / "b.zarr",
        cases,
        0,
        k=3,
        recipe={"seed": 1},
        fingerprint_parts={"weights": "def"},
    )
    found = compare_stores(full_store.path, other.path)
    assert set(found.differences) == {
        ("k", "4", "3"),
        ("recipe.seed", "None", "1"),
        ("fingerprint_parts.weights", "abc", "def"),
    }


def test_other_samples_are_refused(tmp_path: Path, full_store: SoftLabelStore, cases: Any):
    """Stores of other manifests or splits are refused, with every reason."""
    other = _store(
        tmp_path / "b.zarr", cases, 0, manifest_chain="ab" * 32, manifest_rows=300, split="test"
    )
    with pytest.raises(SchemaMismatchError) as raised:
        compare_stores(full_store.path, other.path)
    assert "split must be 'train'" in str(raised.value)
    assert "manifest_chain must be" in str(raised.value)


def test_a_temperature_of_one_store_alone_is_refused(
    tmp_path: Path, full_store: SoftLabelStore, cases: Any
):
    """A temperature must be declared by both; without a shared one the reason is said."""
    other = _store(tmp_path / "b.zarr", cases, 0, temperatures=(4.0,))
    with pytest.raises(SchemaMismatchError, match=r"temperature must be one of \[4\.0\], got 2\.0"):
        compare_stores(full_store.path, other.path, temperature=2.0)
    found = compare_stores(full_store.path, other.path)
    assert (found.temperature, found.kl_ab, found.rows) == (None, None, ())
    assert "no temperature is declared by both" in str(found.kl_problem)
    assert found.labels > 0


def test_damage_is_listed_and_left_out(tmp_path: Path, full_store: SoftLabelStore, cases: Any):
    """A damaged shard of either store is a problem, and its labels are not compared."""
    other = _store(tmp_path / "b.zarr", cases, 0)
    file = shard_file(other.path, "ids", 1, 0)
    file.write_bytes(file.read_bytes()[:-9])
    found = compare_stores(full_store.path, other.path)
    assert [view.both for view in found.views] == [297, 297 - 127]
    assert len(found.problems) == 1
    assert "ids, view 1, shard 0" in found.problems[0]
