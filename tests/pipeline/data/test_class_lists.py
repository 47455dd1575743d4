"""The classes of a teacher as the project file gives them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config import TeacherConfig
from pipeline.data.class_lists import label_map_of
from storage_schemas.label_space import LabelSpace

SPACE = LabelSpace(classes=("fruit/pear", "tool/axe", "fruit/plum", "tool/saw"))


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        ("all", [0, 1, 2, 3]),
        ({"vertical": "tool"}, [1, 3]),
        (["plum", "tool/axe"], [2, 1]),
        ("list.txt", [3, 0]),
    ],
)
def test_classes_in_every_form(classes: object, expected: list[int], tmp_path: Path) -> None:
    """All classes, those of a vertical, a list, and a file, each in its own order."""
    (tmp_path / "list.txt").write_text("saw\nfruit/pear\n", encoding="utf-8")
    if classes == "list.txt":
        classes = str(tmp_path / "list.txt")
    teacher = TeacherConfig.model_validate({"name": "t", "builder": "b", "classes": classes})
    assert label_map_of(teacher, SPACE).global_ids.tolist() == expected
