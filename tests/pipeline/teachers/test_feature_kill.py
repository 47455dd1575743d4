"""A labelling run with features that is killed in the middle of a shard."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import yaml

from pipeline.store import open_block_features

FEATURES = [
    {"block": "blocks.1", "reduce": "channel_mean", "grid": 4},
    {"block": "blocks.2", "reduce": "pca", "grid": 2, "components": 5, "fit_share": 0.5},
]
KILLED = """
import os, sys
sys.path.insert(0, {benchmarks!r})
from pathlib import Path
import tiny_project
from pipeline.store.shards import ShardFiles
original = ShardFiles._write_array
def dying(self, name, view, shard, values):
    if name == "blocks_1.channel_mean" and (view, shard) == (1, 1):
        os.kill(os.getpid(), 9)
    original(self, name, view, shard, values)
ShardFiles._write_array = dying
tiny_project.label(Path({root!r}))
"""


def digests(root):
    """Digest of every file of all stores, but for the time at which they were made."""
    files = [path for path in (root / "work").glob("*/tools/*.zarr/**/c/**/*") if path.is_file()]
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(files)
    }


def test_a_run_that_is_killed_in_a_shard_ends_with_the_same_bytes(tmp_path, tiny_project):
    """SIGKILL between two arrays of a shard; the next run has every byte of an undisturbed one."""
    tiny_project.write_project(tmp_path, images=12)
    path = tmp_path / "project.yaml"
    settings = yaml.safe_load(path.read_text())
    settings["teachers"][0]["features"] = FEATURES
    path.write_text(yaml.safe_dump(settings))
    repository = Path(__file__).parents[3]
    code = KILLED.format(benchmarks=str(repository / "benchmarks"), root=str(tmp_path))
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=environment, check=False
    )
    assert done.returncode == -signal.SIGKILL
    (store,) = (tmp_path / "work" / "features" / "tools").glob("*.zarr")
    assert open_block_features(store).commits[1, 1, 0] == 0
    assert tiny_project.label(tmp_path) > 0
    resumed = digests(tmp_path)
    assert any("blocks_2.pca" in name for name in resumed)
    shutil.rmtree(tmp_path / "work" / "labels")
    shutil.rmtree(tmp_path / "work" / "features")
    tiny_project.label(tmp_path)
    assert digests(tmp_path) == resumed
