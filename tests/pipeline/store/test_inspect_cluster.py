"""Inspect on a cluster of worker processes, and in little memory."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from dask.distributed import LocalCluster

from pipeline.store import SoftLabelStore, create_soft_labels, inspect_store
from pipeline.store.commit import shard_crc
from pipeline.store.layout import shard_file
from storage_schemas.errors import StoreError

# Linux keeps the largest ru_maxrss over an exec, so that a child would inherit that of pytest.
CHILD = """
import json, resource, sys
from pathlib import Path
from pipeline.store import inspect_store

def peak():
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) * 1024

small, large = map(Path, sys.argv[1:])
inspect_store(small)
before = peak()
found = inspect_store(large)
print(json.dumps({"labels": found.labels, "bytes": peak() - before}))
"""
MEGABYTE = 2**20


def test_a_cluster_gives_the_same_figures(full_store: SoftLabelStore):
    """On two worker processes every figure equals the one of the threads; progress is told."""
    wanted = inspect_store(full_store.path)
    told: list[tuple[int, int]] = []
    with LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=True,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        worker_dashboard_address=None,
    ) as cluster:
        found = inspect_store(
            full_store.path,
            address=cluster.scheduler_address,
            progress=lambda done, total: told.append((done, total)),
        )
    for field in dataclasses.fields(wanted):
        assert getattr(found, field.name) == getattr(wanted, field.name), field.name
    assert told == [(done, 6) for done in range(1, 7)]


def test_no_scheduler_is_a_plain_error(full_store: SoftLabelStore, monkeypatch: Any):
    """An address at which nothing answers is named, with what to do."""
    monkeypatch.setattr("pipeline.store.reduction.CONNECT_SECONDS", 0.5)
    with pytest.raises(StoreError, match=r"no Dask scheduler answers at 'tcp://127\.0\.0\.1:9'"):
        inspect_store(full_store.path, address="tcp://127.0.0.1:9")


def write_many_views(path: Path, views: int, cases: Any) -> SoftLabelStore:
    """Write one shard of 131,072 rows and link it into every view, each with its own record."""
    rows = 131_072
    schema = cases.schema_of(
        num_rows=rows,
        num_views=views,
        k=16,
        num_classes=1000,
        temperatures=(1.0,),
        shard_rows=rows,
        chunk_rows=16_384,
    )
    store = create_soft_labels(path, schema)
    rng = np.random.default_rng(0)
    ids, gaps = store.empty_shard()
    ids[:] = rng.integers(0, 900, (rows, 1)) + np.arange(16)
    gaps[:] = rng.integers(0, 40, (rows, 1))
    store.write_shard(0, 0, ids, gaps)
    records = np.zeros((views, 1, 3), np.uint32)
    for view in range(views):
        records[view, 0] = (
            rows,
            *(
                shard_crc(schema, name, view, 0, values)
                for name, values in (("ids", ids), ("gaps", gaps))
            ),
        )
        for name in ("ids", "gaps") if view else ():
            file = shard_file(path, name, view, 0)
            file.parent.mkdir(parents=True)
            os.link(shard_file(path, name, 0, 0), file)
    zarr.open_array(path / "commits", mode="r+")[:] = records
    return store


def test_memory_does_not_grow_with_the_store(tmp_path: Path, cases: Any):
    """A store of 500 MB is inspected in less than 200 MB more than one of a hundredth.

    The small one is inspected first, so that libraries and buffers are there already.
    """
    write_many_views(tmp_path / "small", 1, cases)
    schema = write_many_views(tmp_path / "large", 84, cases).schema
    assert schema.num_views * schema.num_rows * schema.label_bytes > 500 * MEGABYTE
    done = subprocess.run(
        [sys.executable, "-c", CHILD, tmp_path / "small", tmp_path / "large"],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    found = json.loads(done.stdout)
    assert found["labels"] == schema.num_views * schema.num_rows
    assert found["bytes"] < 200 * MEGABYTE
