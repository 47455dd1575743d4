"""Labelling on a tiny real project: images on disk, checkpoints, stores."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from pipeline.config import load_project
from pipeline.data import update_manifest
from pipeline.models.builders import build_classifier
from pipeline.store import open_soft_labels
from pipeline.store.coverage import missing_labels
from pipeline.store.published import open_published
from pipeline.teachers import labelling
from pipeline.teachers.labelling import label_shards
from pipeline.teachers.publishing import label_and_publish
from pipeline.teachers.spec import resolve_teacher, resolve_teachers
from pipeline.teachers.stores import (
    missing_work,
    store_path,
    store_schema,
    work_groups,
)
from pipeline.training.runs import stale_reason, student_runs
from storage_schemas.errors import (
    ConfigError,
    LabelSpaceError,
    MissingLabelError,
    SchemaMismatchError,
    TeacherError,
    TeacherOutputError,
)
from storage_schemas.manifest import TEST, TRAIN

CLASSES = {"fruit": ("apple", "pear", "plum"), "tool": ("axe", "saw")}
BUILDER = "pipeline.models.backbones:glyph_resnet"


def write_image(path, seed):
    """A small colour image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (20, 24, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def write_weights(path, classes, seed):
    """A checkpoint of a glyph ResNet with random weights."""
    torch.manual_seed(seed)
    network = build_classifier(BUILDER, classes, {"width": 8, "in_channels": 3})
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, path)


@pytest.fixture
def root(tmp_path):
    """A project of two verticals with one checkpoint each."""
    for vertical, names in CLASSES.items():
        for name in names:
            for number in range(8):
                write_image(
                    tmp_path / "images" / vertical / name / f"{number}.png",
                    seed=hash((len(name), number, name[0] == "a")) % 2**32,
                )
    write_weights(tmp_path / "fruit.safetensors", 3, seed=0)
    write_weights(tmp_path / "tool.safetensors", 2, seed=1)
    config = {
        "workspace": "work",
        "data": {
            "source": "image_folder",
            "root": "images",
            "vertical_depth": 1,
            "test_fraction": 0.3,
        },
        "views": {"count": 2, "crop": {"scale": [0.5, 1.0]}, "flip": 0.5},
        "teachers": [
            {
                "name": name,
                "builder": BUILDER,
                "builder_args": {"width": 8, "in_channels": 3},
                "weights": f"{name}.safetensors",
                "classes": classes,
                "input": {"size": 32},
                "batch_size": 4,
            }
            for name, classes in (("fruit", ["plum", "apple", "pear"]), ("tool", ["axe", "saw"]))
        ],
        "labels": {"k": 2, "temperatures": [1.0, 2.0], "shard_rows": 8, "chunk_rows": 4},
        "student": {"objective": {"name": "soft_labels", "temperature": 2.0}},
    }
    (tmp_path / "project.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def label_all(root, *, overrides=(), limit=None):
    """Label what is missing, or at most `limit` shards a store; return the labels written."""
    project = load_project(root / "project.yaml", overrides)
    update = update_manifest(project)
    space, manifest = update.label_space, update.manifest
    written = 0
    for spec in resolve_teachers(project, space, manifest):

        def run(store, work, spec=spec):
            return label_shards(project, spec, manifest, store, work[:limit])

        done = label_and_publish(project, spec, space, manifest, run, measure=lambda: None)
        written += sum(counts.labels for counts in done.values())
    return project, update, written


def stores_of(root):
    """All stores of a workspace by relative path."""
    paths = sorted((root / "work" / "labels").glob("*/*.zarr"))
    return {str(path.relative_to(root / "work")): open_soft_labels(path) for path in paths}


@pytest.mark.parametrize("mix", ["null", "{kind: mixup, alpha: 0.8}", "{kind: cutmix}"])
def test_labels_equal_a_dense_run_of_the_teacher(root, mix):
    """What the store returns is the teacher's own softmax on the same pixels, mixed or not."""
    from pipeline.data import open_source
    from pipeline.data.routing import mix_pools
    from pipeline.data.view_reader import ViewReader

    overrides = ["labels.precision=exact", "labels.k=3", f"views.mix={mix}"]
    project, update, _ = label_all(root, overrides=overrides)
    spec = resolve_teacher(project, project.teachers[0], update.label_space, update.manifest)
    published = open_published(project, update.label_space, update.manifest, TRAIN)
    rows = update.manifest.rows(TRAIN, support=spec.label_map.support)
    reader = ViewReader(
        open_source(project.data, project.workspace),
        update.manifest.keys,
        project.views,
        spec.config.input,
        None if mix == "null" else mix_pools(update.manifest, TRAIN, published.routes),
    )
    views = rows % 2
    network = labelling.load_teacher(spec, torch.device("cpu"))
    with torch.inference_mode():
        dense = network(reader.read(rows, views)).softmax(dim=1).numpy()
    found = published.stores[0].fetch(rows, views)
    local = spec.label_map.to_local(len(update.label_space))[found.ids]
    expected = np.take_along_axis(dense, local, axis=1)
    assert np.abs(np.exp(found.log_probs) - expected).max() < 2e-3
    assert (local[:, 0] == dense.argmax(axis=1)).all()


def test_every_teacher_labels_its_own_rows_once(root):
    """All training rows in all views and all test rows in one view, and nothing else."""
    project, update, written = label_all(root)
    train, test = update.manifest.rows(TRAIN), update.manifest.rows(TEST)
    assert len(test) > 0
    assert written == 2 * len(train) + len(test)
    published = open_published(project, update.label_space, update.manifest, TRAIN)
    own = published.stores[0]
    other = update.manifest.rows(TRAIN, support=published.stores[1].label_map.support)
    with pytest.raises(MissingLabelError):
        own.read(other[:1], 0)


def test_second_run_finds_nothing_to_do(root):
    """A complete store is not labelled again."""
    assert label_all(root)[2] > 0
    assert label_all(root)[2] == 0


def test_interrupted_store_ends_like_an_undisturbed_one(root, tmp_path_factory):
    """Labelling in two goes commits the same digests as in one."""
    other = tmp_path_factory.mktemp("other") / "project"
    shutil.copytree(root, other)
    label_all(root)
    label_all(other, limit=1)
    label_all(other)
    first, second = stores_of(root), stores_of(other)
    assert first.keys() == second.keys()
    for name, store in first.items():
        assert np.array_equal(store.commits, second[name].commits)


def test_one_missing_view_is_filled_with_the_same_bits(root):
    """A shard of which one view was lost is labelled to the digest it had."""
    label_all(root)
    name, store = next(iter(stores_of(root).items()))
    before = store.commits
    view, shard = map(int, np.argwhere(before[:, :, 0] > 0)[-1])
    store.discard_shard(view, shard)
    assert label_all(root)[2] == before[view, shard, 0]
    assert np.array_equal(stores_of(root)[name].commits, before)


def test_new_images_are_labelled_alone(root):
    """After images are added, specialists and old shards stay; new rows' shards are written."""
    _, before, _ = label_all(root)
    for number in range(8, 12):
        write_image(root / "images/fruit/pear" / f"{number}.png", seed=number)
    project, after, _ = label_all(root)
    assert len(after.manifest) == len(before.manifest) + 4
    untrained = project.teachers[0].model_copy(update={"weights": None})
    folders = {
        resolve_teacher(project, untrained, update.label_space, update.manifest).folder
        for update in (before, after)
    }
    assert len(folders) == 1
    published = open_published(project, after.label_space, after.manifest, TRAIN)
    for index, store in enumerate(published.stores):
        rows = after.manifest.rows(TRAIN)
        rows = rows[published.routes[after.manifest.labels[rows], index]]
        assert missing_labels(store, rows, rows[:0]) == []
        assert store.fetch(rows, np.zeros_like(rows)).ids.min() >= 0


def test_other_weights_make_another_store(root):
    """A teacher's new checkpoint labels that teacher again, and no other."""
    label_all(root)
    before = set(stores_of(root))
    write_weights(root / "tool.safetensors", 2, seed=9)
    project, update, written = label_all(root)
    new = set(stores_of(root)) - before
    assert len(new) == 2
    assert all(name.startswith("labels/tool/") for name in new)
    spec = resolve_teacher(project, project.teachers[1], update.label_space, update.manifest)
    own = [
        len(update.manifest.rows(split, support=spec.label_map.support)) for split in (TRAIN, TEST)
    ]
    assert written == 2 * own[0] + own[1]


def test_changed_labels_make_the_student_stale_and_say_which(root):
    """The student's plan names the teacher whose labels changed."""
    project, update, _ = label_all(root)
    space, manifest = update.label_space, update.manifest
    published = open_published(project, space, manifest, TRAIN)
    student, control = student_runs(project, space, manifest, published)
    for run in (student, control):
        run.folder.mkdir(parents=True)
        run.weights.write_bytes(b"")
        from pipeline.workspace import write_record

        write_record(run.folder / "student.json", {"parts": run.parts})
        assert stale_reason(run) is None
    write_weights(root / "tool.safetensors", 2, seed=9)
    project, update, _ = label_all(root)
    published = open_published(project, update.label_space, update.manifest, TRAIN)
    student, control = student_runs(project, update.label_space, update.manifest, published)
    assert stale_reason(student) == "changed since the nearest finished run: labels of tool"
    assert stale_reason(control) is None
    project = load_project(root / "project.yaml", ["student.epochs=7"])
    student, _ = student_runs(project, update.label_space, update.manifest, published)
    assert "student.epochs 30 -> 7" in stale_reason(student)


class Broken(nn.Module):
    """Returns a bad value for one image."""

    def __init__(self, value, shape=None):
        super().__init__()
        self.value, self.shape = value, shape

    def forward(self, images):
        logits = torch.zeros(len(images), self.shape or 3)
        logits[len(images) // 2, 2 % logits.shape[1]] = self.value
        return logits


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_bad_logits_stop_and_name_teacher_row_and_view(root, monkeypatch, value):
    """NaN and Inf logits are never stored; the message names teacher, row and view."""
    monkeypatch.setattr(labelling, "load_teacher", lambda spec, device: Broken(value))
    with pytest.raises(
        TeacherOutputError, match=rf"teacher 'fruit' returned {value} for row \d+, view 0"
    ):
        label_all(root)
    assert all(store.commits.sum() == 0 for store in stores_of(root).values())


def test_wrong_number_of_outputs_is_refused(root, monkeypatch):
    """Logits that do not fit the class list stop with both shapes."""
    monkeypatch.setattr(labelling, "load_teacher", lambda spec, device: Broken(0.0, shape=7))
    with pytest.raises(TeacherOutputError, match=r"shape \(4, 3\).*got \(4, 7\)"):
        label_all(root)


def test_class_that_the_label_space_lacks_is_named(root):
    """A class list with an unknown class is an error that names it and a near one."""
    with pytest.raises(LabelSpaceError, match=r"'appel' is not in the label space.*apple"):
        label_all(root, overrides=["teachers.fruit.classes=[plum, appel, pear]"])


def test_duplicate_class_is_named(root):
    """A class list that names a class twice is an error that names it."""
    with pytest.raises(LabelSpaceError, match="'fruit/apple' is a duplicate of class 1"):
        label_all(root, overrides=["teachers.fruit.classes=[plum, apple, fruit/apple]"])


def test_missing_and_unfit_weights_are_refused(root):
    """No file, and a file of another network, are errors that say so."""
    with pytest.raises(ConfigError, match="no file at"):
        label_all(root, overrides=["teachers.fruit.weights=nowhere.safetensors"])
    with pytest.raises(TeacherError, match="do not fit the network"):
        label_all(root, overrides=["teachers.fruit.weights=tool.safetensors"])


def test_labels_of_other_settings_are_refused_with_every_field(root):
    """A student that asks for another recipe and k is refused with both named."""
    _, update, _ = label_all(root)
    project = load_project(root / "project.yaml", ["views.flip=0.1", "labels.temperatures=[2.0]"])
    with pytest.raises(SchemaMismatchError) as caught:
        open_published(project, update.label_space, update.manifest, TRAIN)
    text = str(caught.value)
    assert "fruit: recipe.flip must be 0.1, got 0.5" in text
    assert "tool: temperatures must be (2.0,), got (1.0, 2.0)" in text


def test_unpublished_and_incomplete_labels_are_refused(root):
    """A student is not trained from labels that are not all there."""
    project = load_project(root / "project.yaml")
    update = update_manifest(project)
    with pytest.raises(MissingLabelError, match=r"fruit \(nothing published\)"):
        open_published(project, update.label_space, update.manifest, TRAIN)
    label_all(root, limit=1)
    with pytest.raises(MissingLabelError, match=r"fruit \(\d+ shards\)"):
        open_published(project, update.label_space, update.manifest, TRAIN)


def test_deleted_store_is_seen(root):
    """A store removed behind our back is labelled again, whatever was published."""
    project, update, first = label_all(root)
    spec = resolve_teacher(project, project.teachers[0], update.label_space, update.manifest)
    schema = store_schema(project, spec, update.label_space, update.manifest, TRAIN)
    shutil.rmtree(store_path(project, schema))
    written = label_all(root)[2]
    assert 0 < written < first


def test_work_is_cut_into_groups_of_whole_shards(root):
    """Groups keep the order, lose nothing, and are about as large as asked."""
    project = load_project(root / "project.yaml")
    update = update_manifest(project)
    spec = resolve_teacher(project, project.teachers[0], update.label_space, update.manifest)
    schema = store_schema(project, spec, update.label_space, update.manifest, TRAIN)
    work = missing_work(project, schema, spec, update.manifest)
    groups = work_groups(work, 10)
    assert [item for group in groups for item in group] == work
    assert len(groups) > 1
    assert Path(store_path(project, schema)).suffix == ".zarr"
