"""`concentrate init`: a project file from a folder of images."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import Result

from pipeline.config import ImageFolderData, InputConfig, load_project
from pipeline.plan import make_plan
from pipeline.starting import start_project, teacher_names
from storage_schemas.errors import ConfigError, DataError

Run = Callable[[Path, str], Result]


def write(root: Path, tree: Mapping[str, int], size: tuple[int, int] = (32, 40)) -> Path:
    """Write that many images into each folder of a tree."""
    for folder, count in tree.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            Image.new("RGB", size, (number, 90, 30)).save(root / folder / f"{number}.png")
    return root


def data_of(config: str) -> ImageFolderData:
    """Return the images of a project file."""
    data = load_project(config).data
    assert isinstance(data, ImageFolderData)
    return data


def test_vertical_class_folders(tmp_path: Path):
    """vertical/class folders give one teacher a vertical, each with all its classes."""
    images = write(
        tmp_path / "images", {"birds/robin": 3, "birds/wren": 3, "dogs/boxer": 4, "dogs/pug": 3}
    )
    started = start_project(tmp_path / "project", images)
    project = load_project(started["config"])
    assert data_of(started["config"]).vertical_depth == 1
    assert data_of(started["config"]).root == images
    assert [(t.name, t.weights) for t in project.teachers] == [("birds", None), ("dogs", None)]
    assert "vertical 'birds': 2 classes" in "\n".join(started["found"])


def test_class_folders(tmp_path: Path):
    """Plain class folders give one teacher, and a hint that classes can be grouped."""
    images = write(tmp_path / "images", {"robin": 3, "wren": 3, "boxer": 3})
    started = start_project(tmp_path / "project", images)
    assert data_of(started["config"]).vertical_depth == 0
    assert [teacher.name for teacher in load_project(started["config"]).teachers] == ["all"]
    assert any(line.startswith("data.verticals") for line in started["to_do"])


@pytest.mark.parametrize("held_out", ["test", "val", "Validation"])
@pytest.mark.parametrize("inner", [("robin", "wren"), ("birds/robin", "dogs/pug")])
def test_train_and_test_folders(tmp_path: Path, held_out: str, inner: tuple[str, str]):
    """A train folder beside a test or validation folder is the split, not a class."""
    folders = {f"{split}/{name}": 3 for split in ("train", held_out) for name in inner}
    images = write(tmp_path / "images", folders)
    started = start_project(tmp_path / "project", images)
    data = data_of(started["config"])
    assert (data.root, data.test_root) == (images / "train", images / held_out)
    assert data.vertical_depth == inner[0].count("/")


def test_an_unlabelled_test_folder_is_passed_over(tmp_path: Path):
    """Where `test` has no class folders, as in competitions, `val` is taken, and it says so."""
    images = write(
        tmp_path / "images",
        {"train/cat": 3, "train/dog": 3, "test": 5, "val/cat": 2, "val/dog": 2},
    )
    started = start_project(tmp_path / "project", images)
    assert data_of(started["config"]).test_root == images / "val"
    assert any("test in" in line and "not used" in line for line in started["to_do"])


def test_vehicles_may_have_a_class_named_train(tmp_path: Path):
    """A folder named train among other classes is a class."""
    images = write(tmp_path / "images", {"train": 3, "bus": 3, "tram": 3})
    data = data_of(start_project(tmp_path / "project", images)["config"])
    assert (data.root, data.test_root) == (images, None)


def test_an_inner_images_folder_is_no_class(tmp_path: Path):
    """class/images/file is class folders with a folder that says nothing."""
    images = write(tmp_path / "images", {"cat/images": 3, "dog/images": 3})
    assert data_of(start_project(tmp_path / "project", images)["config"]).vertical_depth == 0


WEIRD = (
    "no",
    "1e3",
    "Größe, [x]: #1",
    "birds & co",
    "birds-co",
    "-x",
    "'quoted\"",
    "日本",
    "~",
    "é",
)


def test_weird_names_survive(tmp_path: Path):
    """Names that YAML would read as something else, or that no file can have, still resolve."""
    images = write(
        tmp_path / "my: images #1", {f"{v}/{c}": 3 for v in WEIRD for c in ("null", "b")}
    )
    started = start_project(tmp_path / "project", images)
    project = load_project(started["config"])
    assert len(project.teachers) == len(WEIRD)
    assert {getattr(teacher.classes, "vertical", None) for teacher in project.teachers} == set(
        WEIRD
    )
    plan, update = make_plan(project)
    assert len(update.label_space) == 2 * len(WEIRD)
    assert {item.target for item in plan.work if item.stage == "specialists"} == {
        teacher.name for teacher in project.teachers
    }


@pytest.mark.skipif(sys.platform != "linux", reason="needs file names that are not UTF-8")
def test_a_folder_name_that_is_not_utf8(tmp_path: Path):
    """A class folder whose name no text can hold does not stop the others."""
    images = write(tmp_path / "images", {"birds/robin": 3, "birds/wren": 3})
    odd = os.fsencode(images / "birds") + b"/\xff\xfe"
    os.mkdir(odd)
    Image.new("RGB", (8, 8)).save(os.path.join(os.fsdecode(odd), "0.png"))
    started = start_project(tmp_path / "project", images)
    assert any(line.startswith("unreadable") for line in started["found"])


def test_teacher_names_are_distinct_file_names():
    """Names that differ in case or in signs alone do not share a folder on any disk."""
    assert teacher_names(["Dogs", "dogs", "do gs", "日本", "中国", "x" * 80]) == [
        "Dogs", "dogs-2", "do-gs", "vertical-4", "vertical-5", "x" * 56,
    ]  # fmt: skip


@pytest.mark.parametrize(("side", "expected"), [(16, 64), (90, 96), (150, 160), (500, 224)])
def test_input_size_follows_the_images(tmp_path: Path, side: int, expected: int):
    """Networks are fed about the size that the images have, up to the usual 224."""
    images = write(tmp_path / "images", {"a": 2, "b": 2}, (side, side + 50))
    project = load_project(start_project(tmp_path / "project", images)["config"])
    assert project.student.input == project.teachers[0].input == InputConfig(size=expected)


def test_the_images_lie_relative_to_the_file(tmp_path: Path):
    """A project that moves together with its images goes on working."""
    images = write(tmp_path / "a" / "images", {"cat": 3, "dog": 3})
    start_project(tmp_path / "a" / "project", images)
    (tmp_path / "a").rename(tmp_path / "b")
    data = data_of(str(tmp_path / "b" / "project" / "project.yaml"))
    assert data.root == tmp_path / "b" / "images"


def test_unreadable_and_few_images_are_told(tmp_path: Path):
    """What is wrong with the images is said before anything runs."""
    images = write(tmp_path / "images", {"birds/robin": 3, "birds/wren": 3, "dogs/pug": 3})
    (images / "birds" / "robin" / "broken.png").write_bytes(b"\x89PNG")
    (images / "birds" / "stray.png").write_bytes((images / "dogs/pug/0.png").read_bytes())
    started = start_project(tmp_path / "project", images)
    found, to_do = "\n".join(started["found"]), "\n".join(started["to_do"])
    assert "broken.png" in found
    assert "outside the class folders, not trained on: 1" in found
    assert "'dogs' has one class" in to_do
    assert "fewer than 20" in to_do


def test_a_project_file_is_never_overwritten(tmp_path: Path):
    """A second init refuses, and leaves the file as it is."""
    images = write(tmp_path / "images", {"cat": 3, "dog": 3})
    (tmp_path / "project").mkdir()
    config = tmp_path / "project" / "project.yaml"
    config.write_text("mine")
    with pytest.raises(ConfigError, match="exists already"):
        start_project(tmp_path / "project", images)
    assert config.read_text() == "mine"


@pytest.mark.parametrize("where", [".", "project"])
def test_a_project_inside_its_images_is_refused(tmp_path: Path, where: str):
    """What a run makes must not be read as images of the next."""
    images = write(tmp_path / "images", {"cat": 3, "dog": 3})
    with pytest.raises(ConfigError, match="outside the images"):
        start_project(images / where, images)


@pytest.mark.parametrize("tree", [{}, {"empty/class": 0}, {".": 3}, {".hidden/cat": 3}])
def test_no_class_folders(tmp_path: Path, tree: Mapping[str, int]):
    """A folder without images in class folders is refused, and nothing is written."""
    images = tmp_path / "images"
    images.mkdir()
    write(images, tree)
    with pytest.raises(DataError, match="must hold class folders"):
        start_project(tmp_path / "project", images)
    assert not (tmp_path / "project").exists()


def test_init_on_the_command_line(tmp_path: Path, run_line: Run):
    """Exit code 0 and one JSON object; 2 with a message on stderr when it refuses."""
    write(tmp_path / "IMAGES", {"birds/robin": 3, "birds/wren": 3})
    done = run_line(tmp_path, "concentrate init pets --images IMAGES --json")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["config"] == "pets/project.yaml"
    again = run_line(tmp_path, "concentrate init pets --images IMAGES")
    assert (again.exit_code, again.stdout) == (2, "")
    assert "exists already" in again.stderr
    missing = run_line(tmp_path, "concentrate init other --images NOWHERE")
    assert missing.exit_code == 2
    assert "NOWHERE" in missing.stderr
