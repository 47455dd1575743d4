"""A published store damaged on disk: found by `verify`, repaired by `label`."""

from __future__ import annotations

import json

import pytest

from pipeline.store import open_soft_labels
from pipeline.store.layout import shard_file

pytestmark = pytest.mark.flow


VERIFY = "concentrate verify project.yaml --teacher letters --depth full"
LABEL = "concentrate label project.yaml --teacher letters --json"


def test_verify_names_damage_and_label_repairs_exactly_that(
    project_folder, run_line, prefect_server
):
    """A flip, an empty file, a lost shard, a cut document: named, exit code 1, repaired, 0."""
    assert run_line(project_folder, LABEL).exit_code == 0
    stores = {
        str(store.schema.split): store
        for path in project_folder.glob("work/labels/letters/*.zarr")
        if (store := open_soft_labels(path))
    }
    train, test = stores["train"].path, stores["test"].path
    before = [store.commits for store in stores.values()]
    flipped = shard_file(train, "ids", 0, 0)
    content = bytearray(flipped.read_bytes())
    content[3] ^= 16
    flipped.write_bytes(content)
    shard_file(train, "gaps", 1, 0).write_bytes(b"")
    for array in ("ids", "gaps", "commits"):
        shard_file(test, array, 0, 0).unlink()

    damaged = run_line(project_folder, VERIFY)
    assert damaged.exit_code == 1
    for named in (
        f"{train}: array ids, view 0, shard 0 is damaged",
        f"{train}: array gaps, view 1, shard 0: file is empty",
        f"{test}: array ids and gaps, view 0, shard 0: ",
    ):
        assert named in damaged.output

    document = test / "gaps" / "zarr.json"
    document.write_bytes(document.read_bytes()[:-30])
    damaged = run_line(project_folder, VERIFY)
    assert damaged.exit_code == 1
    assert f"{test}: metadata of array gaps cannot be read" in damaged.output

    repaired = run_line(project_folder, LABEL)
    assert repaired.exit_code == 0, repaired.output
    assert sum(group["shards"] for group in json.loads(repaired.stdout)) == 3
    assert run_line(project_folder, VERIFY).exit_code == 0
    for store, commits in zip(stores.values(), before, strict=True):
        assert (store.commits == commits).all()
