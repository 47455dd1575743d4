"""Features written in the run that makes the labels, on a tiny real project."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
import yaml

from pipeline.config import load_project
from pipeline.data import update_manifest
from pipeline.models import backbones
from pipeline.numerics.moments import StreamingMoments
from pipeline.store import open_block_features, verify_store
from pipeline.store.published import open_published
from pipeline.teachers import labelling
from pipeline.teachers.feature_creation import fit_pairs
from pipeline.teachers.publishing import label_here
from pipeline.teachers.reductions import REDUCTIONS, block_maps
from pipeline.teachers.spec import resolve_teacher
from storage_schemas.errors import ConfigError, TeacherOutputError
from storage_schemas.manifest import TRAIN

FEATURES = [
    {"block": "blocks.1", "reduce": "channel_mean", "grid": 4},
    {"block": "blocks.2", "reduce": "pool", "grid": 1, "dtype": "uint8", "fit_share": 0.5},
    {"block": "blocks.2", "reduce": "pca", "grid": 2, "components": 5, "fit_share": 0.5},
]


def write_settings(root, features, **changes):
    """Set the features of the only teacher."""
    path = root / "project.yaml"
    settings = yaml.safe_load(path.read_text())
    settings["teachers"][0] |= {"features": features, **changes}
    path.write_text(yaml.safe_dump(settings))


@pytest.fixture
def root(tmp_path, tiny_project):
    """A project of 12 images in each of three classes, whose teacher has three features."""
    tiny_project.write_project(tmp_path, images=12)
    write_settings(tmp_path, FEATURES)
    labelling._loaded_teacher.cache_clear()
    return tmp_path


def run(root):
    """Label what is missing; return project, manifest, teacher, and answers by split."""
    project = load_project(root / "project.yaml")
    update = update_manifest(project)
    spec = resolve_teacher(project, project.teachers[0], update.label_space, update.manifest)
    done = label_here(project, spec, update.label_space, update.manifest)
    return project, update, spec, done


def feature_store(root):
    """The only feature store."""
    (path,) = (root / "work" / "features" / "tools").glob("*.zarr")
    return open_block_features(path)


def digests(root):
    """Digest of every shard, record and constant of all stores."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in ("features", "labels")
        for path in sorted((root / "work" / folder).rglob("c/*"))
        if path.is_file() or (path / "0").is_file()
        for path in ([path] if path.is_file() else sorted(path.rglob("*")))
        if path.is_file()
    }


@pytest.fixture
def passes(monkeypatch):
    """Images of every forward pass of a teacher, by the real network itself."""
    counted = []
    forward = backbones.GlyphResNet.forward

    def counting(self, images):
        counted.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(backbones.GlyphResNet, "forward", counting)
    return counted


def test_features_are_those_of_the_teacher(root):
    """What the store returns is the reduction of the teacher's own blocks on the same pixels."""
    project, update, spec, _ = run(root)
    store = feature_store(root)
    rows = update.manifest.rows(TRAIN)
    reader = labelling.teacher_reader(project, spec, update.manifest, TRAIN)
    network = labelling.load_teacher(spec, torch.device("cpu"))
    views = rows % 2
    blocks = {}
    for name in ("blocks.1", "blocks.2"):
        network.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: blocks.update({name: output.clone()})
        )
    with torch.inference_mode():
        network(reader.read(rows, views))
    labelling._loaded_teacher.cache_clear()
    found = store.fetch(rows, views)
    for config in spec.config.features:
        constants = store.fitted(config.name)
        maps = block_maps(config, blocks[config.block])
        expected = REDUCTIONS[config.reduce].apply(maps, constants)[0].numpy()
        values = found[config.name].values
        limit = 2e-3
        if "range" in constants:
            smallest, step = constants["range"][:, :, None, None]
            limit, expected = step.max() / 2, np.clip(expected, smallest, smallest + 254 * step)
        error = np.abs(values - expected).max()
        assert values.shape[1:] == store.schema.array(config.name).shape
        assert error <= limit + 1e-5 * np.abs(expected).max(), config.name
    assert verify_store(store, "full", rows) == []


def test_one_pass_gives_labels_and_features(root, passes):
    """Beside the passes that labels take, only the declared share is run, and only once."""
    _, update, _, _ = run(root)
    with_features = sum(passes)
    rows = len(update.manifest.rows(TRAIN))
    write_settings(root, [])
    (root / "work" / "labels").rename(root / "old")
    passes.clear()
    run(root)
    blank = 2 * (1 + len(FEATURES))  # images that probe the network, and the shape of each block
    assert with_features - sum(passes) == int(np.ceil(0.5 * rows)) + blank


def test_only_what_is_missing_is_run(root, passes):
    """Missing features are run alone, labels stay untouched, and nothing is fitted again."""
    _, update, _, _ = run(root)
    before = digests(root)
    store = feature_store(root)
    store.discard_shard(1, 0)
    passes.clear()
    _, _, _, done = run(root)
    rows = update.manifest.rows(TRAIN)
    in_shard = int((rows < 16).sum())
    assert done[TRAIN].labels == in_shard
    assert digests(root) == before
    labels = next((root / "work" / "labels" / "tools").glob("*.zarr/ids/c/1/0/0"))
    assert labels.stat().st_mtime_ns < (store.path / "commits/c/1/0/0").stat().st_mtime_ns
    passes.clear()
    assert run(root)[3][TRAIN].labels == 0


def test_labels_are_the_same_with_and_without_features(root):
    """Asking for features changes no fingerprint and no byte of the labels."""
    run(root)
    with_features = {k: v for k, v in digests(root).items() if k.startswith("work/labels")}
    write_settings(root, [])
    (root / "work" / "labels").rename(root / "old")
    run(root)
    assert {k: v for k, v in digests(root).items() if k.startswith("work/labels")} == with_features


def test_a_grown_manifest_keeps_the_basis(root, tiny_project):
    """New images get features in the old basis; shards without new rows are not written again."""
    run(root)
    old = feature_store(root)
    constants = {array.name: old.fitted(array.name) for array in old.schema.arrays}
    stamp = (old.path / "commits/c/0/0/0").stat().st_mtime_ns
    tiny_project.write_images(root / "images", range(12, 20))
    _, update, _, _ = run(root)
    store = feature_store(root)
    assert store.schema.num_rows == len(update.manifest) > old.schema.num_rows
    for name, found in constants.items():
        again = store.fitted(name)
        assert all((again[constant] == values).all() for constant, values in found.items())
    rows = update.manifest.rows(TRAIN)
    assert verify_store(store, "full", rows) == []
    assert (store.path / "commits/c/0/0/0").stat().st_mtime_ns == stamp
    assert store.fetch(rows, rows % 2)["blocks_2.pca"].present.all()


def test_the_basis_is_that_of_the_declared_rows(root):
    """Mean and range in the store are numpy's, of the rows that the generator chose."""
    project, update, spec, _ = run(root)
    store, rows = feature_store(root), update.manifest.rows(TRAIN)
    chosen, views = fit_pairs(project.views.seed, rows, 2, 0.5)
    again = fit_pairs(project.views.seed, rows[::-1][::-1], 2, 0.5)
    assert store.schema.fit_rows == len(chosen) == int(np.ceil(len(rows) / 2))
    assert (again[0] == chosen).all()
    assert set(views.tolist()) == {0, 1}
    reader = labelling.teacher_reader(project, spec, update.manifest, TRAIN)
    network = labelling.load_teacher(spec, torch.device("cpu"))
    with torch.inference_mode():
        output = network.blocks(network.stem(reader.read(chosen, views)))
    maps = block_maps(spec.config.features[2], output)
    moments = StreamingMoments(maps.shape[1], covariance=True)
    moments.update(maps.movedim(1, -1).reshape(-1, maps.shape[1]))
    found = store.fitted("blocks_2.pca")
    np.testing.assert_allclose(found["mean"], moments.mean, atol=1e-5)
    variance = found["basis"] @ moments.covariance.numpy() @ found["basis"].T
    assert np.abs(variance - np.diag(np.diag(variance))).max() < 1e-4 * variance.max()


def test_lost_metadata_cost_no_pass_but_the_probe(root, passes):
    """The group's document is made again from the basis in the store; no shard is run again."""
    run(root)
    before, store = digests(root), feature_store(root)
    (store.path / "zarr.json").unlink()
    passes.clear()
    assert run(root)[3][TRAIN].labels == 0
    assert digests(root) == before
    assert verify_store(feature_store(root), "full") == []


def test_students_get_what_was_published(root):
    """The record names the features; they are opened only for an objective that reads them."""
    project, update, _, _ = run(root)
    published = open_published(project, update.label_space, update.manifest, TRAIN)
    assert published.features == {}

    class Reading(type(project.student.objective)):
        reads = frozenset({"soft", "features"})

    objective = Reading(name="soft_labels")
    student = project.student.model_copy(update={"objective": objective})
    reading = project.model_copy(update={"student": student})
    published = open_published(reading, update.label_space, update.manifest, TRAIN)
    assert published.feature_shapes == {
        "tools/blocks_1.channel_mean": (1, 4, 4),
        "tools/blocks_2.pool": (16, 1, 1),
        "tools/blocks_2.pca": (5, 2, 2),
    }


def test_a_block_that_is_not_there_is_refused_with_those_that_are(root):
    """All wrong features are named at once, with the modules of the network."""
    wrong = [
        {"block": "layer9", "reduce": "pool", "grid": 1},
        {"block": "blocks.7", "reduce": "pool", "grid": 1},
    ]
    write_settings(root, wrong)
    with pytest.raises(ConfigError) as caught:
        run(root)
    assert len(caught.value.problems) == 2
    assert "'blocks.0'" in str(caught.value)
    write_settings(root, [FEATURES[2] | {"components": 500}])
    with pytest.raises(ConfigError, match="at most 16"):
        run(root)


def test_a_feature_beyond_float16_stops_the_shard(root, tiny_project):
    """Nothing of the shard is written; the message says which block and what to do."""
    write_settings(root, FEATURES[:1], weights="large.safetensors")
    from safetensors.torch import load_file, save_file

    state = load_file(root / "tools.safetensors")
    scaled = {k: v * (1e6 if k == "blocks.1.bn2.weight" else 1) for k, v in state.items()}
    save_file(scaled, root / "large.safetensors")
    with pytest.raises(TeacherOutputError, match=r"blocks_1\.channel_mean .*uint8"):
        run(root)
    assert not feature_store(root).commits.any()
