"""A student that starts from a teacher's weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.config import StudentConfig, load_project
from pipeline.data import update_manifest
from pipeline.models.builders import build_classifier
from pipeline.models.student import Student, build_student
from pipeline.models.weights import save_weights
from pipeline.store.published import open_published
from pipeline.training.initial_weights import InitialWeights
from pipeline.training.runs import student_runs
from storage_schemas.errors import ConfigError, TeacherError
from storage_schemas.fingerprint import file_digest
from storage_schemas.label_space import LabelSpace
from storage_schemas.manifest import TRAIN

SPACE = LabelSpace(classes=("a/0", "a/1", "b/0", "b/1", "b/2"))
BUILDER = "pipeline.models.backbones:glyph_resnet"


def student(width: int = 8) -> Student:
    """A fresh student of glyphs."""
    config = StudentConfig(
        builder=BUILDER, builder_args={"width": width}, input={"size": 32, "channels": 1}
    )
    return build_student(config, SPACE).eval()


def weights_of(folder: Path) -> tuple[InitialWeights, torch.nn.Module]:
    """A classifier of three of the classes, in another order, and its file."""
    classifier = build_classifier(BUILDER, 3, {"width": 8}).eval()
    path = folder / "weights.safetensors"
    save_weights(classifier, path)
    return InitialWeights(
        teacher="some",
        digest=file_digest(path),
        candidates=(folder / "absent.safetensors", path),
        global_ids=np.array([4, 0, 2]),
    ), classifier


def test_the_student_says_what_the_teacher_says(tmp_path: Path) -> None:
    """Backbone and the rows of known classes are the teacher's; other rows stay as they were."""
    weights, classifier = weights_of(tmp_path)
    found, images = student(), torch.randn(2, 1, 32, 32)
    before = found.head.fc.weight.clone()
    weights.copy_into(found)
    with torch.no_grad():
        logits = found(images).logits
        torch.testing.assert_close(logits[:, [4, 0, 2]], classifier(images))
    assert torch.equal(found.head.fc.weight[[1, 3]], before[[1, 3]])


def test_weights_that_changed_or_do_not_fit_are_refused(tmp_path: Path) -> None:
    """The file must be the one of the labels, and of the student's network."""
    weights, _ = weights_of(tmp_path)
    other = student(width=16)
    with pytest.raises(TeacherError, match=r"does not fit the student's network: .*another shape"):
        weights.copy_into(other)
    weights.candidates[1].write_bytes(b"others")
    with pytest.raises(TeacherError, match="no file has the weights of some"):
        weights.copy_into(student())


def test_a_run_is_named_by_the_weights_it_starts_from(labelled_project: Path) -> None:
    """Their digest is in the parts of the student's run only, and nothing is where none is set."""
    update = update_manifest(load_project(labelled_project))
    parts = {}
    for setting in (None, "fruit"):
        overrides = [] if setting is None else [f"student.init={setting}"]
        project = load_project(labelled_project, overrides)
        published = open_published(project, update.label_space, update.manifest, TRAIN)
        runs = student_runs(project, update.label_space, update.manifest, published)
        parts[setting] = [run.parts for run in runs]
    assert parts["fruit"][0].pop("init") == file_digest(
        labelled_project.with_name("fruit.safetensors")
    )
    assert parts["fruit"] == parts[None]
    assert "init" not in parts[None][0]["student"]


def test_a_teacher_of_another_network_is_refused(labelled_project: Path) -> None:
    """The error lists the teachers whose weights would fit."""
    with pytest.raises(ConfigError, match=r"student.init must be .* one of \['fruit', 'tool'\]"):
        load_project(labelled_project, ["student.init=nobody"])
