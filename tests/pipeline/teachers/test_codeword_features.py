"""Codewords of a teacher's blocks: fitted, stored and read again, on a tiny real project."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import yaml

from pipeline.config import load_project
from pipeline.data import update_manifest
from pipeline.store import open_block_features, verify_store
from pipeline.teachers import labelling
from pipeline.teachers.features import planned_row_bytes
from pipeline.teachers.publishing import label_here
from pipeline.teachers.spec import resolve_teacher
from storage_schemas.errors import ConfigError
from storage_schemas.manifest import TRAIN

DICTIONARY = {"multiple": 1.5, "sparsity": 0.2, "steps": 60}
FEATURES = [
    {"block": "blocks.2", "reduce": "pool", "grid": 1},
    {"block": "blocks.1", "reduce": "codewords", "grid": 4, "dictionary": DICTIONARY},
]


def write_settings(root, features):
    """Set the features of the only teacher."""
    path = root / "project.yaml"
    settings = yaml.safe_load(path.read_text())
    settings["teachers"][0] |= {"features": features}
    path.write_text(yaml.safe_dump(settings))


@pytest.fixture
def root(tmp_path, tiny_project):
    """A project of 12 images in each of three classes, whose teacher has codewords."""
    tiny_project.write_project(tmp_path, images=12)
    write_settings(tmp_path, FEATURES)
    labelling._loaded_teacher.cache_clear()
    return tmp_path


def run(root):
    """Label what is missing; return project, manifest, teacher and the store of its features."""
    project = load_project(root / "project.yaml")
    update = update_manifest(project)
    spec = resolve_teacher(project, project.teachers[0], update.label_space, update.manifest)
    label_here(project, spec, update.label_space, update.manifest)
    (path,) = (root / "work" / "features" / "tools").glob("*.zarr")
    return project, update.manifest, spec, open_block_features(path)


def test_stored_codewords_are_those_of_the_teacher(root):
    """Ids and means are those of a float64 reference on the teacher's own blocks."""
    project, manifest, spec, store = run(root)
    rows = manifest.rows(TRAIN)
    views = rows % 2
    found = store.fetch(rows, views)
    reader = labelling.teacher_reader(project, spec, manifest, TRAIN)
    network = labelling.load_teacher(spec, torch.device("cpu"))
    with torch.inference_mode():
        output = network.blocks[:2](network.stem(reader.read(rows, views)))
        x = torch.nn.functional.adaptive_avg_pool2d(output, 4).double().movedim(1, 3).numpy()
    constants = store.fitted("blocks_1.codewords")
    assert constants["codewords"].shape == (12, 8)
    assert constants["kept"].tolist() == [2]
    logits = x / constants["scale"] @ constants["codewords"].T + constants["bias"]
    kept = np.sort(logits, axis=3)[..., -2:-1] <= logits
    means = (kept / (1 + np.exp(-logits))).mean(axis=(1, 2))
    ids = found["blocks_1.codewords"].values[:, 0].astype(np.int64)
    # float32 may choose another of two that are alike.
    chosen = np.take_along_axis(logits, ids[..., None], 3)[..., 0]
    np.testing.assert_allclose(chosen, logits.max(axis=3), atol=1e-4)
    assert (ids == logits.argmax(axis=3)).mean() > 0.99
    np.testing.assert_allclose(
        found["blocks_1.codeword_means"].values[:, :, 0, 0], means, atol=2e-3
    )
    assert verify_store(store, "full", rows) == []


def test_the_schema_says_what_is_stored(root):
    """Ids are uint16 with the dictionary beside them, means float16; the plan had these bytes."""
    _, _, spec, store = run(root)
    forms = {one.name: (one.reduce, one.dtype, one.shape) for one in store.schema.arrays}
    assert forms == {
        "blocks_2.pool": ("pool", "float16", (16, 1, 1)),
        "blocks_1.codewords": ("codewords", "uint16", (1, 4, 4)),
        "blocks_1.codeword_means": ("codeword_means", "float16", (12, 1, 1)),
    }
    assert set(store.fitted("blocks_1.codewords")) == {"codewords", "bias", "scale", "kept"}
    assert store.fitted("blocks_1.codeword_means") == {}
    assert store.schema.row_bytes == planned_row_bytes(spec) == 2 * (16 + 16 + 12)


def test_a_resumed_or_repaired_store_keeps_its_dictionary(root):
    """A shard that is lost comes back bit for bit, and so does a lost description."""
    _, _, _, store = run(root)
    before = store.read_shard(1, 0)
    constants = store.fitted("blocks_1.codewords")
    store.discard_shard(1, 0)
    (store.path / "zarr.json").unlink()
    _, manifest, _, again = run(root)
    for name, values in constants.items():
        assert (again.fitted("blocks_1.codewords")[name] == values).all()
    for found, wanted in zip(again.read_shard(1, 0), before, strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert verify_store(again, "full", manifest.rows(TRAIN)) == []


def test_a_dictionary_is_the_same_again_and_its_settings_name_the_store(root):
    """Fitting is a function of the settings, and they belong to the fingerprint."""
    _, _, spec, store = run(root)
    (root / "work" / "features").rename(root / "old")
    _, _, _, again = run(root)
    assert again.path == store.path
    old = open_block_features(next((root / "old" / "tools").glob("*.zarr")))
    assert old.schema.fitted_arrays == again.schema.fitted_arrays
    assert spec.config.features[1].parts["dictionary"] == DICTIONARY | {"seed": 0}
    assert "dictionary" not in spec.config.features[0].parts


def test_more_codewords_than_ids_are_refused(root, monkeypatch):
    """The message says how many there would be, before anything is fitted."""
    monkeypatch.setattr("pipeline.teachers.reductions.LARGEST_NUMBER", 10)
    with pytest.raises(ConfigError, match=r"at most 11 codewords, got 12 for 8 channels"):
        run(root)
