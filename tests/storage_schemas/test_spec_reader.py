"""The specification is enough: a reader written from it alone gets the same probabilities."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.numerics.selection import count_draws
from pipeline.store import SoftLabelStore, create_soft_labels
from pipeline.store.layout import shard_file
from storage_schemas.soft_labels import SoftLabelSchema, encode, encode_counts

READER = Path(__file__).with_name("spec_reader.py")
KINDS: dict[str, dict[str, Any]] = {
    "compact": {},
    "exact": {"precision": "exact", "temperatures": (1.0, 2.0, 0.5)},
    "sigmoid": {"activation": "sigmoid", "temperatures": (1.0, 4.0)},
    "exact sigmoid": {"activation": "sigmoid", "precision": "exact"},
    "all classes": {"k": 5, "num_classes": 5},
    "one rank": {"k": 1},
    "65535 classes": {"num_classes": 65_535},
    "many classes": {"num_classes": 70_000, "k": 7},
    "nucleus": {"selection": "top_p", "top_p": 0.9, "temperatures": (1.0, 2.0)},
    "nucleus of all classes": {"selection": "top_p", "top_p": 0.9, "k": 5, "num_classes": 5},
    "draws": {"selection": "sampled", "k": 12},
    "more draws than classes": {"selection": "sampled", "k": 12, "num_classes": 5},
}


def make_store(path: Path, **fields: Any) -> SoftLabelStore:
    """Write a store of 2 views in which some rows and one shard are not labelled."""
    count = fields.get("num_classes", 40)
    values: dict[str, Any] = {
        "teacher": "birds \u00e9",
        "num_rows": 150,
        "num_views": 2,
        "k": 6,
        "num_classes": count,
        "shard_rows": 64,
        "chunk_rows": 32,
        "classes": tuple(f"v\u00f6gel/{at}" for at in range(count)),
        "global_ids": tuple(range(count - 1, -1, -1)),
        "fingerprint_parts": {"weights": "abc", "scale": [0.5, 1.0], "name": "\u00fc"},
        "recipe": {"count": 2, "crop": {"scale": [0.6, 1.0]}},
    }
    schema = SoftLabelSchema.model_validate(values | fields)
    store = create_soft_labels(path, schema)
    rng = np.random.default_rng(len(fields))
    for view, shard in np.ndindex(2, schema.num_shards):
        rows = np.flatnonzero(rng.random(len(store.shard_span(shard))) < 0.8)
        if (view, shard) == (1, 1):
            continue
        ids, gaps = store.empty_shard()
        ids[rows], gaps[rows] = random_labels(schema, len(rows), rng)
        store.write_shard(view, shard, ids, gaps)
    return store


def random_labels(schema: SoftLabelSchema, rows: int, rng: np.random.Generator) -> Any:
    """Return ids and gaps of so many rows, as the schema's selection stores them."""
    if schema.selection == "sampled":
        drawn = torch.from_numpy(rng.integers(0, schema.num_classes, (rows, schema.k)))
        return encode_counts(schema, *(found.numpy() for found in count_draws(drawn)))
    logits = -np.sort(-rng.normal(0, 8, (rows, schema.k)), axis=1)
    count = schema.num_classes
    chosen = np.stack([rng.choice(count, schema.k, replace=False) for _ in range(rows)])
    if schema.selection == "top_p":
        chosen[np.arange(schema.k) >= rng.integers(1, schema.k + 1, (rows, 1))] = -1
    tails = rng.uniform(-1, 40, (rows, len(schema.temperatures)))
    return encode(schema, chosen, logits, tails)


@pytest.fixture
def read(tmp_path: Path) -> Callable[[Path], subprocess.CompletedProcess[str]]:
    """Run the reader on a store; its labels go to labels.npz."""

    def run(store: Path) -> subprocess.CompletedProcess[str]:
        pytest.importorskip("tensorstore")
        # -I: neither this folder nor PYTHONPATH, so that only installed packages can be found.
        return subprocess.run(
            [sys.executable, "-I", READER, store, tmp_path / "labels.npz"],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


@pytest.mark.parametrize("kind", KINDS)
def test_the_spec_alone_gives_equal_probabilities(tmp_path: Path, kind: str, read: Any):
    """Every label of every kind of store, at every temperature, is what `fetch` returns."""
    store = make_store(tmp_path / "store.zarr", **KINDS[kind])
    done = read(store.path)
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "labels.npz")
    global_ids = np.append(store.schema.global_ids, -1)
    labelled = 0
    for view, shard in np.ndindex(2, store.schema.num_shards):
        span = store.shard_span(shard)
        here = found["ids"][view, span.start : span.stop, 0] >= 0
        assert int(here.sum()) == store.commit_record(view, shard)[0]
        rows = span.start + np.flatnonzero(here)
        labelled += len(rows)
        for at, temperature in enumerate(store.schema.temperatures):
            wanted = store.fetch(rows, np.full_like(rows, view), temperature=temperature)
            np.testing.assert_array_equal(global_ids[found["ids"][view, rows]], wanted.ids)
            for name in ("log_probs", "log_tail"):
                values = found[name][at, view, rows]
                np.testing.assert_allclose(values, getattr(wanted, name), rtol=2e-6, atol=2e-6)
    assert labelled > 150


def test_the_spec_reader_refuses_what_it_must(tmp_path: Path, read: Any):
    """An altered attribute, another array, exchanged shards and a lost commit are all seen."""
    store = make_store(tmp_path / "store.zarr")
    group = store.path / "zarr.json"
    whole = group.read_text()
    document = json.loads(whole)
    document["attributes"]["soft_labels"]["temperatures"] = [2.0]
    group.write_text(json.dumps(document))
    assert "digest of the attributes" in read(store.path).stderr
    group.write_text(whole)
    array = store.path / "gaps" / "zarr.json"
    kept = array.read_text()
    array.write_text(kept.replace('"column"', '"rank"'))
    assert "digest of gaps" in read(store.path).stderr
    array.write_text(kept)
    one, other = (shard_file(store.path, "ids", view, 0) for view in (0, 1))
    mine = one.read_bytes()
    one.write_bytes(other.read_bytes())
    assert "crc32c of ids, view 0, shard 0" in read(store.path).stderr
    one.write_bytes(mine)
    shard_file(store.path, "commits", 0, 0).unlink()
    assert read(store.path).returncode == 0
    assert (np.load(tmp_path / "labels.npz")["ids"][0, :64] == -1).all()


def test_the_spec_reader_reads_a_store_that_grew(tmp_path: Path, read: Any):
    """After a growth, finished or interrupted, the old labels are read, and no row more."""
    store = make_store(tmp_path / "store.zarr")
    before = store.fetch_quantised(*_labelled(store))
    attributes = (store.path / "zarr.json").read_bytes()
    rows, views = _labelled(store)
    store.grow(300)
    assert read(store.path).returncode == 0
    found = np.load(tmp_path / "labels.npz")["ids"]
    assert found.shape[1] == 300
    np.testing.assert_array_equal(found[views, rows], before[0])
    (store.path / "zarr.json").write_bytes(attributes)
    assert read(store.path).returncode == 0
    found = np.load(tmp_path / "labels.npz")["ids"]
    assert found.shape[1] == 150
    np.testing.assert_array_equal(found[views, rows], before[0])


def _labelled(store: SoftLabelStore) -> tuple[Any, Any]:
    ids = store.to_dask()["ids"].compute(scheduler="sync")
    views, rows = np.nonzero(ids[:, :, 0] >= 0)
    return rows, views
