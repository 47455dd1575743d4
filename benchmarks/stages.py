"""The stages of the pipeline without Prefect, for benchmarks that need a workspace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import Project, load_project
from pipeline.data import update_manifest
from pipeline.store.published import open_published
from pipeline.teachers.publishing import label_here
from pipeline.teachers.spec import resolve_teachers
from pipeline.teachers.specialist import train_specialist
from pipeline.training.evaluation import (
    evaluate_predictions,
    evaluate_specialists,
)
from pipeline.training.prediction import predict_rows
from pipeline.training.runs import student_runs
from pipeline.training.students import train_student
from storage_schemas.label_space import LabelSpace
from storage_schemas.manifest import TEST, TRAIN, Manifest

DEMO = Path(__file__).parents[1] / "flows" / "configs" / "glyphs.yaml"


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """A project whose teachers have labelled everything."""

    project: Project
    manifest: Manifest
    space: LabelSpace


def labelled_project(config: Path, overrides: Sequence[str]) -> Labelled:
    """Train the specialists and label what is missing."""
    project = load_project(config, overrides)
    update = update_manifest(project)
    manifest, space = update.manifest, update.label_space
    for spec in resolve_teachers(project, space, manifest):
        if not spec.is_ready:
            train_specialist(project, spec, manifest)
        label_here(project, spec, space, manifest)
    return Labelled(project=project, manifest=manifest, space=space)


def trained_runs(labelled: Labelled) -> dict[str, dict[str, float]]:
    """Train and evaluate student and control; returns their metrics by role."""
    project, manifest, space = labelled.project, labelled.manifest, labelled.space
    train = open_published(project, space, manifest, TRAIN)
    test = open_published(project, space, manifest, TEST)
    found = {}
    for run in student_runs(project, space, manifest, train):
        if run.record is None:
            train_student(project, run, space, manifest, train)
        predictions = predict_rows(project, run, space, manifest)
        found[run.role] = evaluate_predictions(predictions, space, test)
    specialists = evaluate_specialists(test, space, manifest)
    images = sum(values["images"] for values in specialists.values())
    right = sum(values["images"] * values["top1"] for values in specialists.values())
    found["specialists"] = {"top1_inside": round(right / images, 3)}
    return found
