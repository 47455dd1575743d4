"""What `benchmarks/stream.py` and `stream_large.py` compare is the same labels."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    names = ("stream", "stream_large", "peer_layouts")
    return tuple(importlib.import_module(name) for name in names)


def test_peers_layouts_hold_the_labels_of_the_store(tmp_path, scripts):
    """Ids are equal, and probabilities to float16, by a seek and by a file."""
    stream, _, peers = scripts
    store = stream.label_store(tmp_path / "store.zarr", 64)
    rows = np.array([5, 63, 0, 17])
    wanted = store.fetch(rows, np.zeros_like(rows))
    peers.write_tinyvit(store, tmp_path / "records.bin")
    peers.write_fkd(store, tmp_path / "fkd", 64)
    ids, values = next(peers.read_fkd(tmp_path / "fkd", [rows]))
    assert torch.equal(ids[:: peers.FKD_VIEWS], torch.from_numpy(wanted.ids))
    with (tmp_path / "records.bin").open("rb") as file:
        records = [peers.TinyViTRecords(file, 64)[row] for row in rows.tolist()]
    for at, (seed, found_ids, p) in enumerate(records):
        assert (seed.item(), found_ids.tolist()) == (rows[at], wanted.ids[at].tolist())
        np.testing.assert_allclose(p, np.exp(wanted.log_probs[at]), atol=1e-3)
        np.testing.assert_allclose(values[at * peers.FKD_VIEWS], p, atol=1e-3)


def test_a_store_of_repeated_shards_is_sound(tmp_path, scripts, monkeypatch):
    """Linked shards are read and checked in their own places, and the raw files hold the same."""
    _, large, _ = scripts
    monkeypatch.setattr(large, "LAYOUT", (64, 16))
    store = large.repeated_store(tmp_path / "store.zarr", 64 * 6 + 10)
    raw = large.raw_files(store, tmp_path)
    rows = np.arange(store.schema.num_rows)
    wanted = {
        "codes": store.fetch_quantised(rows, 0 * rows),
        "decoded": store.fetch(rows, 0 * rows),
    }
    for form, arrays in wanted.items():
        for mapped, values in zip(raw[form], arrays, strict=True):
            np.testing.assert_array_equal(mapped, values)
    np.testing.assert_array_equal(store.read_shard(0, 1)[0], store.read_shard(0, 5)[0])
