"""The stages of the pipeline without Prefect, for benchmarks that need a workspace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import Project, load_project
from pipeline.data import update_manifest
from pipeline.store.published import open_published
from pipeline.teachers.publishing import label_here
from pipeline.teachers.spec import resolve_teachers
from pipeline.teachers.specialist import train_specialist
from pipeline.training.evaluation import evaluate_runs
from pipeline.training.runs import student_runs
from pipeline.training.students import train_student
from storage_schemas.label_space import LabelSpace
from storage_schemas.manifest import TEST, TRAIN, Manifest

CONFIGS = Path(__file__).parents[1] / "flows" / "configs"
DEMO = CONFIGS / "glyphs.yaml"


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """A project whose teachers have labelled everything."""

    project: Project
    manifest: Manifest
    space: LabelSpace


def labelled_project(config: Path, overrides: Sequence[str]) -> Labelled:
    """Train the specialists and label what is missing."""
    return labelled(load_project(config, overrides))


def labelled(project: Project) -> Labelled:
    """Train the specialists and label what is missing."""
    update = update_manifest(project)
    manifest, space = update.manifest, update.label_space
    for spec in resolve_teachers(project, space, manifest):
        if not spec.is_ready:
            train_specialist(project, spec, manifest)
        label_here(project, spec, space, manifest)
    return Labelled(project=project, manifest=manifest, space=space)


def trained(made: Labelled) -> dict[str, Any]:
    """Train the student, and its control where the project has one, unless they are there.

    Returns:
        Their evaluation: `runs`, student first, and `specialists`.
    """
    project, manifest, space = made.project, made.manifest, made.space
    published = open_published(project, space, manifest, TRAIN)
    runs = student_runs(project, space, manifest, published)
    for run in runs:
        if run.record is None:
            train_student(project, run, space, manifest, published)
    test = open_published(project, space, manifest, TEST)
    return evaluate_runs(project, runs, space, manifest, test)


def specialists_top1(evaluation: Mapping[str, Any]) -> float:
    """Return the share of test images that their own specialist gets right, in percent."""
    scored = [values for values in evaluation["specialists"].values() if values["images"]]
    right = sum(values["images"] * values["top1"] for values in scored)
    return round(right / sum(values["images"] for values in scored), 3)
