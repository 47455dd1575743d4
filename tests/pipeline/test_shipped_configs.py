"""Every glyph configuration that ships runs from images to an evaluated student, made short."""

from __future__ import annotations

import functools
import math
from pathlib import Path

import pytest

from pipeline.config import FeatureConfig, Project, load_project
from pipeline.data import update_manifest
from pipeline.store.published import open_published
from pipeline.teachers.publishing import label_here
from pipeline.teachers.spec import resolve_teachers
from pipeline.teachers.specialist import train_specialist
from pipeline.training.evaluation import evaluate_runs
from pipeline.training.metrics_log import read_metrics
from pipeline.training.runs import student_runs
from pipeline.training.students import train_student
from storage_schemas.manifest import TEST, TRAIN

CONFIGS = sorted((Path(__file__).parents[2] / "flows" / "configs").rglob("*.yaml"))
GLYPHS = [path for path in CONFIGS if "source: glyphs" in path.read_text(encoding="utf-8")]


def quickly_fitted(feature: FeatureConfig) -> FeatureConfig:
    """The feature with few steps of the fit of its dictionary, where it has one."""
    if feature.dictionary is None:
        return feature
    few = feature.dictionary.model_copy(update={"steps": 20})
    return feature.model_copy(update={"dictionary": few})


def shortened(path: Path, folder: Path) -> Project:
    """The project with its two smallest verticals, few views and one epoch of each training."""
    student = load_project(path).student
    project = load_project(
        path,
        [
            f"workspace={folder}",
            "data.verticals=[armenian, georgian]",
            f"views.count={student.views_per_image}",
            "specialists.epochs=1",
            # An epoch of each stage.
            f"student.epochs={2 if path.stem in ('compact', 'sparse_representation') else 1}",
            *(["student.curriculum.phases=1"] if student.curriculum else []),
        ],
    )
    teachers = tuple(
        t.model_copy(update={"features": tuple(quickly_fitted(f) for f in t.features)})
        for t in project.teachers
        if t.name in ("armenian", "georgian") or t.classes == "all"
    )
    return project.model_copy(update={"teachers": teachers})


@pytest.fixture(scope="module")
def workspace_of(tmp_path_factory):
    """One workspace for all configurations of the same images: drawn, and mostly taught, once."""

    @functools.cache
    def workspace(data: str) -> Path:
        return tmp_path_factory.mktemp("shipped")

    return lambda path: workspace(load_project(path).data.model_dump_json())


@pytest.mark.parametrize("path", GLYPHS, ids=lambda path: path.stem)
def test_shipped_config_runs(path, workspace_of):
    """Specialists, labels, student, control and evaluation work, and losses are finite."""
    project = shortened(path, workspace_of(path))
    update = update_manifest(project)
    manifest, space = update.manifest, update.label_space
    for spec in resolve_teachers(project, space, manifest):
        if not spec.is_ready:
            train_specialist(project, spec, manifest)
        label_here(project, spec, space, manifest)
    published = open_published(project, space, manifest, TRAIN)
    runs = student_runs(project, space, manifest, published)
    for run in runs:
        train_student(project, run, space, manifest, published)
        assert all(math.isfinite(row["loss"]) for row in read_metrics(run.folder / "metrics.csv"))
    tests = open_published(project, space, manifest, TEST)
    found = evaluate_runs(project, runs, space, manifest, tests)
    assert [run["role"] for run in found["runs"]] == ["student", "control"]
    assert all(run["images"] == len(manifest.rows(TEST)) > 0 for run in found["runs"])
    assert all(math.isfinite(run["mpvap"]) for run in found["runs"])


def test_a_demo_config_ships():
    """The list of configurations that the test above runs is not empty."""
    assert {path.stem for path in GLYPHS} >= {"glyphs", "knowledge_concentration"}
