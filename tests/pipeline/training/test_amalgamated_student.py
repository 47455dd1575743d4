"""A student of two specialists from stores alone, of images that nobody has labelled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from pipeline.config import Amalgamation, Project, load_project
from pipeline.data import update_manifest
from pipeline.data.manifest import ManifestUpdate
from pipeline.models.builders import build_classifier
from pipeline.models.weights import save_weights
from pipeline.objectives.stored_signals import StoredSignals
from pipeline.store.published import open_published
from pipeline.teachers.publishing import label_here
from pipeline.teachers.spec import resolve_teachers
from pipeline.training.evaluation import evaluate_runs
from pipeline.training.metrics_log import read_metrics
from pipeline.training.runs import discard_run, student_runs
from pipeline.training.students import train_student
from storage_schemas.errors import ConfigError
from storage_schemas.manifest import TEST, TRAIN

SOURCE = """
import numpy as np
from PIL import Image
from pipeline.data.decoding import image_digest
from pipeline.data.source import Sample, Source

CLASSES = ("fruit/apple", "fruit/pear", "tool/axe", "tool/saw", "tool/file")


class Noise(Source):
    def samples(self):
        for number in range(24):
            yield Sample(key=f"train-{number}", class_name=None, split=0)
        for name in CLASSES:
            yield Sample(key=f"test-{name}", class_name=name, split=1)

    def load(self, key):
        pixels = np.random.default_rng([*key.encode()]).integers(0, 255, (32, 32), np.uint8)
        return Image.fromarray(pixels)

    def content_digest(self, key):
        return image_digest(self.load(key))

    def stamp(self, key):
        return None
"""
CLASSES = {"fruit": ["apple", "pear"], "tool": ["axe", "saw", "file"]}
LAYERS = (
    {
        "block": "blocks.1",
        "features": "blocks_1.pca",
        "into": ["blocks.2.conv1", "blocks.2.shortcut.1"],
    },
    {"block": "blocks.2", "features": "blocks_2.pca", "into": ["head.fc"]},
)
NETWORK = {
    "builder": "pipeline.models.backbones:glyph_resnet",
    "builder_args": {"width": 8},
    "input": {"size": 32, "channels": 1},
}


def settings(routing: str = "all") -> dict[str, object]:
    """The project file: both stages, with hints in the second."""
    features = [
        {"block": "blocks.1", "reduce": "pca", "grid": 8, "components": 6, "fit_share": 1.0},
        {"block": "blocks.2", "reduce": "pca", "grid": 4, "components": 9, "dtype": "uint8"},
    ]
    return {
        "workspace": "work",
        "data": {"source": "python", "callable": "unlabelled_noise:Noise"},
        "views": {"count": 2, "crop": {"scale": [0.7, 1.0]}},
        "teachers": [
            {
                "name": name,
                "weights": f"{name}.safetensors",
                "classes": classes,
                "routing": routing,
                "features": features,
                **NETWORK,
            }
            for name, classes in CLASSES.items()
        ],
        "labels": {"k": 2, "temperatures": [1.0, 2.0]},
        "student": {
            **NETWORK,
            "objective": {
                "name": "amalgamation",
                "temperature": 2.0,
                "layers": list(LAYERS),
                "layerwise_share": 0.5,
                "hint_weight": 0.5,
            },
            "epochs": 2,
            "batch_size": 8,
            "log_every_steps": 1,
            "control": False,
        },
        "runtime": {"device": "cpu"},
    }


def written(folder: Path, tree: dict[str, object]) -> Path:
    """Write the project file."""
    path = folder / "project.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture
def labelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Project, ManifestUpdate]:
    """The project with both specialists' answers to all images."""
    (tmp_path / "unlabelled_noise.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    for name, classes in CLASSES.items():
        network = build_classifier(NETWORK["builder"], len(classes), NETWORK["builder_args"])
        save_weights(network, tmp_path / f"{name}.safetensors")
    project = load_project(written(tmp_path, settings()), [])
    update = update_manifest(project)
    for spec in resolve_teachers(project, update.label_space, update.manifest):
        label_here(project, spec, update.label_space, update.manifest)
    return project, update


def test_a_student_learns_from_unlabelled_images(
    labelled: tuple[Project, ManifestUpdate], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From stores alone, with no label in the manifest, through both stages to an evaluation."""
    project, update = labelled
    manifest, space = update.manifest, update.label_space
    assert (manifest.labels[manifest.rows(TRAIN)] == -1).all()
    seen = []
    fetch = StoredSignals.fetch

    def watched(self: StoredSignals, rows: np.ndarray, views: np.ndarray) -> object:
        seen.append(fetch(self, rows, views))
        return seen[-1]

    monkeypatch.setattr(StoredSignals, "fetch", watched)
    published = open_published(project, space, manifest, TRAIN)
    (run,) = student_runs(project, space, manifest, published)
    train_student(project, run, space, manifest, published)
    assert seen
    assert all(targets.labels is None for targets in seen)
    logs = {
        path.parent.name: read_metrics(path) for path in sorted(run.folder.rglob("metrics.csv"))
    }
    assert [name.partition("-")[2] for name in logs] == ["layerwise", "joint"]
    layerwise, joint = logs.values()
    assert {"blocks.1_loss", "blocks.2_loss", "kd_loss"} < set(layerwise[0])
    assert layerwise[-1]["blocks.1_loss"] < layerwise[0]["blocks.1_loss"]
    assert {"hint_loss", "kd_loss", "vertical_loss"} < set(joint[0])
    tests = open_published(project, space, manifest, TEST)
    found = evaluate_runs(project, [run], space, manifest, tests)
    assert found["runs"][0]["images"] == 5
    assert set(found["runs"][0]["verticals"]) == {"fruit", "tool"}
    shown = [
        (sample["label"].partition("/")[0], sample["teacher_name"]) for sample in found["samples"]
    ]
    assert shown
    assert all(vertical == teacher for vertical, teacher in shown)


def test_labels_of_the_manifest_are_hidden(
    labelled: tuple[Project, ManifestUpdate], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other labels in the manifest leave the student as it is, bit for bit."""
    project, update = labelled
    manifest, space = update.manifest, update.label_space
    published = open_published(project, space, manifest, TRAIN)
    (run,) = student_runs(project, space, manifest, published)
    train_student(project, run, space, manifest, published)
    wanted = run.weights.read_bytes()
    labels = manifest.labels.copy()
    labels[manifest.rows(TRAIN)] = np.arange(24) % 5
    monkeypatch.setitem(manifest.__dict__, "labels", labels)
    discard_run(run)
    train_student(project, run, space, manifest, published)
    assert run.weights.read_bytes() == wanted


def test_teachers_that_label_their_own_rows_alone_are_refused(tmp_path: Path) -> None:
    """Which rows are a teacher's own is told by labels, so every teacher must label all."""
    with pytest.raises(ConfigError, match=r"routing must be 'all', got 'own' for \['fruit'"):
        load_project(written(tmp_path, settings(routing="own")), [])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": []}, "need layers, got none"),
        ({"layers": [LAYERS[0], LAYERS[0]]}, "different blocks"),
        ({"layers": [{**LAYERS[0], "into": []}]}, r"needs `into`.*blocks\.1"),
    ],
)
def test_layers_that_cannot_work_are_refused(changes: dict[str, object], message: str) -> None:
    """Layers that are missing, doubled or without readers are named."""
    with pytest.raises(ValueError, match=message):
        Amalgamation(name="amalgamation", layerwise_share=0.5, **changes)
