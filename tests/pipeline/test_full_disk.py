"""A disk that is full, read-only, or another user's: a clear error, nothing half, then on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.config import load_project
from pipeline.data import load_label_space, load_manifest, update_manifest
from pipeline.durable_files import write_durably
from pipeline.models.weights import save_weights
from pipeline.store import create_soft_labels, open_soft_labels, verify_store
from pipeline.store.published_labels import commits_digest
from pipeline.training.checkpoints import save_checkpoint
from pipeline.training.metrics_log import MetricsLog
from pipeline.workspace import write_record
from storage_schemas.errors import StoreError
from storage_schemas.manifest import TEST, TRAIN
from storage_schemas.soft_labels import SoftLabelSchema

FULL = r"No space left on device.* \d[\d,]* are free at .*what is committed stays"
FORBIDDEN = {
    "read_only": "Read-only file system .*what is committed stays",
    "foreign": "Permission denied .*what is committed stays",
}


def small_schema(**fields: object) -> SoftLabelSchema:
    values = {
        "teacher": "birds",
        "num_rows": 4096,
        "num_views": 2,
        "k": 4,
        "num_classes": 300,
        "shard_rows": 4096,
        "chunk_rows": 1024,
        "classes": tuple(f"birds/{i}" for i in range(300)),
        "global_ids": tuple(range(300)),
        "fingerprint_parts": {"weights": "abc"},
    }
    return SoftLabelSchema.model_validate(values | fields)


def random_labels(schema: SoftLabelSchema) -> tuple[np.ndarray, np.ndarray]:
    """Labels that do not compress."""
    rng = np.random.default_rng(0)
    first = rng.integers(0, 296, (schema.shard_rows, 1))
    ids = (first + np.arange(4)).astype(schema.ids_dtype)
    gaps = rng.integers(0, 200, (schema.shard_rows, schema.columns)).astype(schema.gaps_dtype)
    return ids, gaps


@pytest.mark.skipif(os.geteuid() == 0, reason="the tests below run by themselves")
def test_in_a_namespace():
    """Who is not root runs the tests of this module in a user namespace, where one can mount."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"]).returncode:
        pytest.skip("no user namespaces here")
    command = ["unshare", "-rm", sys.executable, "-m", "pytest", "-q", __file__]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_a_shard_on_a_full_disk(disk):
    """The error names the bytes needed and free; nothing of the shard stays; it can be resumed."""
    schema = small_schema()
    store = create_soft_labels(disk.path / "birds.zarr", schema)
    store.write_shard(0, 0, *random_labels(schema))
    files = set(store.path.rglob("*"))
    needed = sum(part.nbytes for part in random_labels(schema))
    with (
        disk.full(leave=20_000),
        pytest.raises(StoreError, match=f"view 1, shard 0.*needs about {needed:,} bytes") as caught,
    ):
        store.write_shard(1, 0, *random_labels(schema))
    assert caught.match(FULL)
    assert {path for path in store.path.rglob("*") if path.is_file()} <= files
    assert verify_store(store, "full") == []
    store.write_shard(1, 0, *random_labels(schema))
    assert verify_store(store, "full") == []
    assert store.missing_shards(np.array([4096])) == []


def test_a_new_store_on_a_full_disk(disk):
    """Creation leaves nothing behind, growth the store as it was."""
    (disk.path / "labels").mkdir()
    with disk.full(), pytest.raises(StoreError, match=FULL):
        create_soft_labels(disk.path / "labels" / "birds.zarr", small_schema())
    assert list((disk.path / "labels").iterdir()) == []
    store = create_soft_labels(disk.path / "labels" / "birds.zarr", small_schema())
    with disk.full(), pytest.raises(StoreError, match=FULL):
        store.grow(9000)
    assert disk.leftovers() == []
    assert open_soft_labels(store.path).schema.num_rows == 4096
    store.grow(9000)
    assert verify_store(store, "full") == []


def writers(folder: Path) -> dict[str, object]:
    """Everything else that writes into a workspace, by name."""
    network = torch.nn.Linear(300, 300)
    return {
        "record": lambda: write_record(folder / "record.json", {"a": list(range(9000))}),
        "report": lambda: write_durably(folder / "report" / "index.html", bytes(90_000)),
        "weights": lambda: save_weights(network, folder / "weights.safetensors"),
        "checkpoint": lambda: save_checkpoint(folder, 3, network.state_dict(), keep=2),
        "log": lambda: MetricsLog(folder / "run").write(1, {"loss": 1.0}),
    }


@pytest.mark.parametrize("name", ["record", "report", "weights", "checkpoint"])
def test_any_file_on_a_full_disk(disk, name):
    """Records, pages, weights and checkpoints: one error of ours, no temporary file, then on."""
    write = writers(disk.path)[name]
    with disk.full(), pytest.raises(StoreError, match=FULL):
        write()
    assert disk.leftovers() == []
    write()


@pytest.mark.parametrize("how", FORBIDDEN)
@pytest.mark.parametrize("name", ["record", "report", "weights", "checkpoint", "log"])
def test_any_file_where_nothing_may_be_written(disk, name, how):
    """A read-only disk and another user's: one error of ours that says which."""
    write = writers(disk.path)[name]
    with getattr(disk, how)(), pytest.raises(StoreError, match=FORBIDDEN[how]):
        write()
    assert list(disk.path.iterdir()) == []


def commits(workspace: Path) -> list[str]:
    """Commit digests of all stores of a workspace."""
    paths = sorted((workspace / "labels").glob("*/*.zarr"))
    return [commits_digest(open_soft_labels(path)) for path in paths]


@pytest.mark.parametrize("leave", [1_000, 60_000, 120_000])
def test_labelling_on_a_full_disk(disk, tmp_path, tiny_project, leave):
    """Wherever room runs out, one error of ours; with room again, it ends as if undisturbed."""
    for root in (tmp_path, disk.path):
        tiny_project.write_project(root, 16)
    tiny_project.label(tmp_path)
    with disk.full(leave), pytest.raises(StoreError, match=FULL):
        tiny_project.label(disk.path)
    assert disk.leftovers() == []
    tiny_project.label(disk.path)
    assert commits(disk.path / "work") == commits(tmp_path / "work")


@pytest.mark.parametrize("how", FORBIDDEN)
def test_labels_where_nothing_may_be_written(disk, tiny_project, how):
    """Published labels can be read and verified; new ones are refused with the reason."""
    tiny_project.write_project(disk.path, 16)
    tiny_project.label(disk.path)
    project = load_project(disk.path / "project.yaml")
    (path, *_) = sorted((project.workspace / "labels").glob("*/*.zarr"))
    with getattr(disk, how)():
        store = open_soft_labels(path)
        assert verify_store(store, "full") == []
        with pytest.raises(StoreError, match=FORBIDDEN[how]):
            update_manifest(project)
        with pytest.raises(StoreError, match=FORBIDDEN[how]):
            store.write_shard(0, 0, *store.read_shard(0, 0))
    assert verify_store(store, "full") == []
    manifest = load_manifest(project.workspace)
    assert len(manifest.rows(TRAIN)) + len(manifest.rows(TEST)) == 48
    assert len(load_label_space(project.workspace)) == 3
