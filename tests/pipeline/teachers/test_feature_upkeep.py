"""Features in the plan, under verification, in the collection of garbage and in `inspect`."""

from __future__ import annotations

import shutil

import pytest
import yaml

from pipeline.config import load_project
from pipeline.data import update_manifest
from pipeline.plan import make_plan
from pipeline.store import inspect_features, open_block_features, verify_store
from pipeline.store.garbage import find_garbage, remove_garbage
from pipeline.store.layout import shard_file
from pipeline.store.published_features import published_features_path, verify_published_features
from pipeline.teachers import labelling
from pipeline.teachers.stores import current_stores
from pipeline.workspace import Workspace
from storage_schemas.errors import SchemaMismatchError

POOL = {"block": "blocks.2", "reduce": "pool", "grid": 2}
PCA = {"block": "blocks.1", "reduce": "pca", "grid": 1, "components": 3, "fit_share": 0.2}


def ask_for(root, *features, **labels):
    """Set the features of the only teacher, and label settings."""
    path = root / "project.yaml"
    settings = yaml.safe_load(path.read_text())
    settings["teachers"][0]["features"] = list(features)
    settings["labels"] |= labels
    path.write_text(yaml.safe_dump(settings))


@pytest.fixture(scope="module")
def template(tmp_path_factory, tiny_project):
    """A labelled project without features."""
    root = tmp_path_factory.mktemp("features")
    tiny_project.write_project(root, images=8)
    tiny_project.label(root)
    return root


@pytest.fixture
def root(template, tmp_path):
    """A copy of it."""
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    labelling._loaded_teacher.cache_clear()
    return tmp_path


def label_work(root):
    """What the plan has to label."""
    plan, _ = make_plan(load_project(root / "project.yaml"))
    return [item for item in plan.work if item.stage == "label"]


def current_path(root):
    """Where the published features lie."""
    return published_features_path(Workspace(root / "work"), "tools")


def test_the_plan_states_the_bytes_of_features(root, tiny_project):
    """Before they are there, when one shard is missing, and when nothing is to be done."""
    assert label_work(root) == []
    ask_for(root, POOL, PCA)
    (item,) = label_work(root)
    project = load_project(root / "project.yaml")
    rows = len(update_manifest(project).manifest.rows(0))
    each = 2 * (16 * 2 * 2 + 3)  # float16
    assert item.feature_bytes == item.bytes == 2 * rows * each
    assert item.labels == 0
    assert "not stored; features are fitted on 4 rows first" in item.reason
    tiny_project.label(root)
    assert label_work(root) == []
    store = open_block_features(current_path(root))
    assert store.schema.row_bytes == each
    in_shard = int(store.commits[0, 0, 0])
    store.discard_shard(0, 0)
    (item,) = label_work(root)
    assert item.feature_bytes == item.bytes == in_shard * each
    assert item.shards == 1


def test_features_that_are_not_wanted_any_more_are_unpublished(root, tiny_project):
    """The plan says so, the next run does it without a shard, and gc then finds the store."""
    ask_for(root, POOL)
    tiny_project.label(root)
    old = current_path(root)
    ask_for(root)
    (item,) = label_work(root)
    assert (item.labels, item.bytes, item.reason) == (0, 0, "complete, to be published")
    assert tiny_project.label(root) == 0
    assert label_work(root) == []
    assert current_path(root) is None
    project = load_project(root / "project.yaml")
    found = find_garbage(
        Workspace(root / "work"), current=current_stores(project), teachers=["tools"], keep=0
    )
    actions = {(item.kind, item.action) for item in found}
    assert actions == {("labels", "keep"), ("features", "remove")}
    remove_garbage(Workspace(root / "work"), found)
    assert not old.exists()


def test_features_in_use_are_never_garbage(root, tiny_project):
    """Published ones are kept, and so is the unfinished store of the project file."""
    ask_for(root, POOL)
    tiny_project.label(root)
    project = load_project(root / "project.yaml")
    workspace = Workspace(root / "work")
    for published in (True, False):
        if not published:
            workspace.published("tools").unlink()
        found = find_garbage(workspace, current=current_stores(project), teachers=["tools"], keep=0)
        assert {item.action for item in found} == {"keep"}


def test_published_features_are_verified(root, tiny_project):
    """A flipped bit is named, taken out of use, and exactly that shard is written again."""
    ask_for(root, POOL, PCA)
    tiny_project.label(root)
    project = load_project(root / "project.yaml")
    rows = update_manifest(project).manifest.rows(0)
    assert verify_published_features(project, "tools", "full", rows) == []
    file = shard_file(current_path(root), "blocks_1.pca", 1, 0, 3)
    content = bytearray(file.read_bytes())
    content[9] ^= 1
    file.write_bytes(content)
    (problem,) = verify_published_features(project, "tools", "full", rows)
    assert "array blocks_1.pca, view 1, shard 0" in problem
    assert tiny_project.label(root) == 1
    assert verify_published_features(project, "tools", "full", rows) == []
    ask_for(root, POOL)
    other = load_project(root / "project.yaml")
    workspace = Workspace(root / "work")
    record = workspace.published("tools").read_text()
    workspace.published("tools").write_text(record.replace('"features"', '"elsewhere"'))
    assert verify_published_features(other, "tools", "quick", rows) != []


def test_other_shards_than_those_of_the_labels_are_refused(root, tiny_project):
    """Two writers of one feature shard cannot be: label shards must hold whole ones."""
    ask_for(root, POOL)
    tiny_project.label(root)
    ask_for(root, POOL, shard_rows=24, chunk_rows=8, k=1)
    with pytest.raises(SchemaMismatchError, match="multiple"):
        tiny_project.label(root)


def test_a_summary_tells_what_is_there(root, tiny_project):
    """Shapes, sizes, coverage, mean and deviation; a damaged shard is listed and not counted."""
    ask_for(root, POOL, PCA)
    tiny_project.label(root)
    store = open_block_features(current_path(root))
    rows = update_manifest(load_project(root / "project.yaml")).manifest.rows(0)
    values = [store.fetch(rows, rows * 0 + view)["blocks_1.pca"].values for view in (0, 1)]
    found = inspect_features(store.path)
    assert found.is_healthy
    assert found.rows_per_view == (len(rows), len(rows))
    pool, pca = found.arrays
    assert (pool.shape, pca.shape, pca.fitted) == ((16, 2, 2), (3, 1, 1), ("basis", "mean"))
    flat = [value for part in values for value in part.ravel().tolist()]
    assert pca.mean == pytest.approx(sum(flat) / len(flat), abs=1e-6)
    shard_file(store.path, "blocks_2.pool", 0, 0, 3).write_bytes(b"")
    again = inspect_features(store.path)
    assert not again.is_healthy
    assert again.rows_per_view[0] < len(rows)
    assert again.to_dict()["problems"] == again.problems
    assert verify_store(store) != []
