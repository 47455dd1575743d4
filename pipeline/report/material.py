"""What the report reads from the workspace beside the evaluation.

In: learning curves, summaries of the published stores, the quarantine table, as values. Left out:
how they are shown, and the images of samples (samples.py). What is missing or damaged becomes a
sentence in the page; it never stops the report.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import Project
from pipeline.store import StoreSummary, inspect_store
from pipeline.store.published import published_path, read_exactness
from pipeline.workspace import Workspace
from storage_schemas.errors import ConcentrateError
from storage_schemas.exactness import Exactness
from storage_schemas.manifest import TEST, TRAIN

QUARANTINE_SHOWN = 10
# Beside these, a column of metrics.csv may be a metric of the head.
_TERM = "_loss"


@dataclass(frozen=True, kw_only=True)
class TeacherLabels:
    """The published stores of one teacher.

    Attributes:
        teacher: Its name.
        train: Summary of the train store; None when it cannot be read.
        test: Summary of the test store; None when it cannot be read.
        exactness: What its train labels lost; None when it was not measured for them.
        problem: Why a summary is missing.
    """

    teacher: str
    train: StoreSummary | None = None
    test: StoreSummary | None = None
    exactness: Exactness | None = None
    problem: str | None = None


@dataclass(frozen=True, kw_only=True)
class Quarantine:
    """Files that do not decode.

    Attributes:
        total: How many; None when there is no table to read.
        first: (path, reason) of the first ones.
    """

    total: int | None = None
    first: tuple[tuple[str, str], ...] = ()


def read_curves(folder: Path) -> dict[str, list[float]]:
    """Return `epoch`, `loss` and the loss terms of a run, as equally long columns.

    The stages of a run follow one another; a term that a stage does not have is NaN there. Rows
    that are torn or not finite are left out. Empty when nothing can be read. This does not use
    `pipeline.training.metrics_log`, which loads torch.
    """
    stages = sorted(folder.glob("stages/*/metrics.csv")) or [folder / "metrics.csv"]
    parts = [part for part in map(_stage_curves, stages) if part]
    names = dict.fromkeys(name for part in parts for name in part)
    columns: dict[str, list[float]] = {name: [] for name in names}
    first = 0.0
    for part in parts:
        size = len(part["epoch"])
        for name in names:
            columns[name] += part.get(name, [math.nan] * size)
        columns["epoch"][-size:] = [first + epoch for epoch in part["epoch"]]
        first = columns["epoch"][-1]
    return columns


def _stage_curves(path: Path) -> dict[str, list[float]]:
    columns: dict[str, list[float]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            names = [n for n in rows.fieldnames or () if n in ("epoch", "loss") or _is_term(n)]
            if not {"epoch", "loss"} <= set(names):
                return {}
            columns = {name: [] for name in ("epoch", "loss", *names)}
            for row in rows:
                values = _floats(row, columns)
                if values is not None:
                    for name, value in values.items():
                        columns[name].append(value)
    except (OSError, UnicodeDecodeError, csv.Error):
        return {}
    return columns if columns["epoch"] else {}


def _is_term(name: str) -> bool:
    return name.endswith(_TERM) and name != "loss"


def _floats(row: dict[str, str], names: dict[str, list[float]]) -> dict[str, float] | None:
    try:
        values = {name: float(row[name]) for name in names}
    except (TypeError, ValueError):
        return None
    return values if all(math.isfinite(value) for value in values.values()) else None


def read_labels(project: Project) -> list[TeacherLabels]:
    """Return what the published stores hold, one entry per teacher of the project."""
    return [_teacher_labels(project, teacher.name) for teacher in project.teachers]


def _teacher_labels(project: Project, teacher: str) -> TeacherLabels:
    workspace = Workspace(project.workspace)
    try:
        paths = [published_path(workspace, teacher, split) for split in (TRAIN, TEST)]
        train, test = (inspect_store(path) if path is not None else None for path in paths)
    except (ConcentrateError, OSError) as error:
        return TeacherLabels(teacher=teacher, problem=str(error))
    exactness = read_exactness(workspace, teacher)
    if exactness is not None and (train is None or exactness.fingerprint != train.fingerprint):
        exactness = None
    return TeacherLabels(
        teacher=teacher,
        train=train,
        test=test,
        exactness=exactness,
        problem=None if train is not None else "nothing is published",
    )


def read_quarantine(workspace: Path) -> Quarantine:
    """Return how many files are in quarantine, and the first of them."""
    first: list[tuple[str, str]] = []
    total = 0
    path = Workspace(workspace).data / "quarantine.csv"
    try:
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            for row in csv.DictReader(file):
                total += 1
                if len(first) < QUARANTINE_SHOWN:
                    first.append((row.get("path") or "", row.get("reason") or ""))
    except (OSError, csv.Error):
        return Quarantine()
    return Quarantine(total=total, first=tuple(first))
