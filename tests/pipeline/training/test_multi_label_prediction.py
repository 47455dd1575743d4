"""What a student of classes with parents says of an image file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from pipeline.config import StudentConfig
from pipeline.models.student import build_student
from pipeline.models.weights import save_weights
from pipeline.training.prediction import predict_images
from pipeline.workspace import write_record
from storage_schemas.label_space import LabelSpace

CLASSES = ("latin/a acute", "latin/a", "latin/any a", "latin/any latin", "latin/any b")
PARENTS = {
    "latin/a acute": ("latin/any a",),
    "latin/a": ("latin/any a",),
    "latin/any a": ("latin/any latin",),
    "latin/any b": ("latin/any latin",),
}
CONFIG = {
    "builder": "pipeline.models.backbones:glyph_resnet",
    "builder_args": {"width": 8},
    "input": {"size": 32, "channels": 1},
    "objective": {"name": "knowledge_concentration", "form": "sigmoid"},
}


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A blank image."""
    Image.new("L", (32, 32)).save(tmp_path / "blank.png")
    return tmp_path / "blank.png"


def student_of(folder: Path, space: LabelSpace) -> Path:
    """A student that is sure of Latin and of the letter, and not of the accent."""
    config = StudentConfig.model_validate(CONFIG)
    student = build_student(config, space)
    torch.nn.init.zeros_(student.head.fc.weight)
    student.head.fc.bias.data = torch.tensor([0.1, -0.1, 2.0, 3.0, -4.0])
    save_weights(student, folder / "weights.safetensors")
    record = {"student": config.model_dump(mode="json"), "label_space": space.to_dict()}
    write_record(folder / "student.json", record)
    return folder


def test_leaves_are_named_and_what_is_sure_above_them(tmp_path: Path, image: Path) -> None:
    """`top` is of leaves by sigmoid; `above` lists inner classes of probability 1/2 or more."""
    folder = student_of(tmp_path, LabelSpace(classes=CLASSES, parents=PARENTS))
    (found,) = predict_images(folder, [image], top=2)
    assert found["top"] == [["latin/a acute", 0.525], ["latin/a", 0.475]]
    assert found["above"] == [["latin/any latin", 0.9526], ["latin/any a", 0.8808]]


def test_a_flat_student_has_nothing_above(tmp_path: Path, image: Path) -> None:
    """Without parents every class may be the answer, and the reply is as it always was."""
    (found,) = predict_images(student_of(tmp_path, LabelSpace(classes=CLASSES)), [image], top=2)
    assert [name for name, _ in found["top"]] == ["latin/any latin", "latin/any a"]
    assert "above" not in found
