"""Every project file that comes with the project is one that loads."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from pipeline.config import TeacherConfig, load_project

CONFIGS = Path(__file__).parents[2] / "flows" / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_config_loads(path: Path):
    """A file in flows/configs is accepted as it is, and is found by its own name."""
    project = load_project(path)
    assert project.teachers
    assert project.workspace.is_absolute()


def test_there_are_configs():
    """The demo, the template and both forms of the method are there."""
    assert {path.stem for path in FILES} >= {
        "glyphs",
        "image_folder",
        "knowledge_concentration",
        "knowledge_concentration_sigmoid",
    }


@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
def test_concentration_configs_differ_from_the_demo_in_the_method_only(form: str):
    """Images, views and teachers are those of the demo, in a workspace of their own."""
    demo = load_project(CONFIGS / "glyphs.yaml")
    suffix = "" if form == "softmax" else "_sigmoid"
    project = load_project(CONFIGS / f"knowledge_concentration{suffix}.yaml")
    for part in ("views", "teachers"):
        assert getattr(project, part) == getattr(demo, part)
    assert project.data.model_copy(update={"hierarchy": False}) == demo.data
    assert project.data.hierarchy == (form == "sigmoid")
    assert project.workspace != demo.workspace
    assert project.labels.activation == form
    assert project.student.objective.activation == form
    assert project.student.head.name == "structurally_connected"
    assert getattr(project.student.head, "self_paced", None) == "vertical"


def test_rows_of_the_papers_table_load():
    """Each row that the comment names is a project with the images, teachers and labels of all."""
    path = CONFIGS / "knowledge_concentration_sigmoid.yaml"
    comment = path.read_text(encoding="utf-8").partition("workspace:")[0]
    rows = [re.findall(r"--set (\S+)", row) for row in comment.split("#   + ")[1:]]
    distilled, structured, full = (load_project(path, row) for row in rows)
    assert [p.student.head.connection for p in (distilled, structured, full)] == [
        "fc_fc",
        "fc_sc",
        "fc_sc",
    ]
    assert [p.student.head.self_paced for p in (distilled, structured, full)] == [
        "none",
        "none",
        "vertical",
    ]
    assert len({p.student.name for p in (distilled, structured, full)}) == 3
    for row in (distilled, structured):
        assert row.model_copy(update={"student": full.student}) == full
        same = {"name": full.student.name, "head": full.student.head}
        assert row.student.model_copy(update=same) == full.student


def test_the_template_shows_every_setting_of_a_teacher():
    """A reader of image_folder.yaml meets each key that a teacher can have, but routing."""
    tree = yaml.safe_load((CONFIGS / "image_folder.yaml").read_text(encoding="utf-8"))
    shown = {key for teacher in tree["teachers"] for key in teacher}
    assert shown == set(TeacherConfig.model_fields) - {"routing"}
    kinds = {teacher["builder"].partition(":")[0] for teacher in tree["teachers"]}
    assert kinds == {"torchvision", "timm", "python"}
