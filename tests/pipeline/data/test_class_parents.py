"""Where is-a parents come from: the names of glyphs, and a file beside an image folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from pipeline.config import load_project
from pipeline.data import load_label_space, update_manifest
from pipeline.data.hierarchy import glyph_parents, letter_name, read_parents
from storage_schemas.errors import ConcentrateError, DataError

ACUTE, SMALL = "latin/LATIN SMALL LETTER A WITH ACUTE", "latin/LATIN SMALL LETTER A"
LETTER, SCRIPT = "latin/any LATIN LETTER A", "latin/any latin"
BIRDS = ("birds/robin", "birds/wren", "birds/stilt", "cats/wren")


@pytest.mark.parametrize(
    ("name", "letter"),
    [
        ("LATIN SMALL LETTER A WITH ACUTE", "LATIN LETTER A"),
        ("LATIN CAPITAL LETTER O WITH STROKE", "LATIN LETTER O"),
        ("GREEK SMALL LETTER ALPHA WITH PSILI AND VARIA", "GREEK LETTER ALPHA"),
        ("LEFTWARDS ARROW WITH STROKE", "LEFTWARDS ARROW"),
        ("NOT EQUAL TO", "EQUALS SIGN"),
    ],
)
def test_a_letter_has_neither_case_nor_marks(name: str, letter: str) -> None:
    """Decomposition and the name together give the letter that a character is a form of."""
    assert letter_name(name) == letter


def test_a_glyph_is_a_letter_is_a_script() -> None:
    """A with acute is a letter A is Latin; a letter with one form is left out."""
    parents = glyph_parents([ACUTE, SMALL, "latin/LATIN SMALL LETTER B"])
    assert parents == {
        ACUTE: (LETTER,),
        SMALL: (LETTER,),
        LETTER: (SCRIPT,),
        "latin/LATIN SMALL LETTER B": (SCRIPT,),
    }
    assert glyph_parents([*parents, SCRIPT]) == parents


def birds_file(folder: Path, content: Any) -> Path:
    """A parents file."""
    path = folder / "parents.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def test_names_of_a_parents_file_are_resolved(tmp_path: Path) -> None:
    """Bare parents lie in the vertical of their child, on any number of levels."""
    tree = {
        "robin": "songbird",
        "birds/wren": ["songbird", "small"],
        "songbird": "bird",
        "stilt": "bird",
    }
    assert read_parents(birds_file(tmp_path, tree), BIRDS, BIRDS) == {
        "birds/robin": ("birds/songbird",),
        "birds/wren": ("birds/songbird", "birds/small"),
        "birds/songbird": ("birds/bird",),
        "birds/stilt": ("birds/bird",),
    }


def test_all_that_does_not_fit_is_told_at_once(tmp_path: Path) -> None:
    """Unknown and ambiguous classes, and inner classes with images of their own."""
    tree = {"wren": "bird", "robbin": "bird", "birds/stilt": "robin"}
    with pytest.raises(DataError) as caught:
        read_parents(birds_file(tmp_path, tree), BIRDS, BIRDS)
    for part in (
        r"'wren' is ambiguous: write one of ['birds/wren', 'cats/wren']",
        "'robbin' is no class, and no parent of one",
        "'birds/robin' has classes below it, so its images must lie in their folders",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize("content", ["[robin]", "robin: 3", "robin: []", "{", "robin: {a: b}"])
def test_other_content_is_refused(tmp_path: Path, content: str) -> None:
    """Anything but names is refused with the file's name."""
    with pytest.raises(DataError, match=r"data\.parents: .*parents\.yaml"):
        read_parents(birds_file(tmp_path, content), BIRDS, BIRDS)


def folder_project(folder: Path, parents: Any) -> Any:
    """A project over two birds and a cat."""
    for name in ("birds/robin", "birds/wren", "cats/tabby"):
        (folder / "images" / name).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (len(name) * 9, 0, 0)).save(folder / "images" / name / "0.png")
    birds_file(folder, parents)
    settings = {
        "workspace": "work",
        "data": {
            "source": "image_folder",
            "root": "images",
            "vertical_depth": 1,
            "parents": "parents.yaml",
        },
        "labels": {"activation": "sigmoid"},
        "student": {"objective": {"name": "knowledge_concentration", "form": "sigmoid"}},
        "teachers": [
            {
                "name": "birds",
                "builder": "torchvision:resnet18",
                "classes": {"vertical": "birds"},
            }
        ],
    }
    (folder / "project.yaml").write_text(yaml.safe_dump(settings))
    return load_project(folder / "project.yaml")


def test_inner_classes_join_the_label_space(tmp_path: Path) -> None:
    """A new line appends its classes; those that are there keep their ids."""
    project = folder_project(tmp_path, {"robin": "bird", "wren": "bird"})
    first = update_manifest(project).label_space
    assert first.classes == ("birds/bird", "birds/robin", "birds/wren", "cats/tabby")
    project = folder_project(tmp_path, {"robin": "bird", "wren": "bird", "bird": "animal"})
    second = update_manifest(project).label_space
    assert second.classes == (*first.classes, "birds/animal")
    assert load_label_space(project.workspace) == second
    assert second.ancestors(1) == (0, 4)


def test_a_cycle_is_refused(tmp_path: Path) -> None:
    """Nothing can be its own ancestor."""
    project = folder_project(tmp_path, {"robin": "bird", "bird": "thing", "thing": "bird"})
    with pytest.raises(ConcentrateError, match="cycle"):
        update_manifest(project)
