"""Which images were left out, and how everything was made."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from datetime import datetime
from importlib import metadata
from pathlib import Path, PurePath
from typing import Any

import yaml

from pipeline.config import Project
from pipeline.report.markup import MISSING, Markup, element, table
from pipeline.report.material import Quarantine
from pipeline.report.sections import Run, note, runs_by_role, section
from storage_schemas.selection import described

PACKAGES = (
    "concentrate",
    "torch",
    "torchvision",
    "zarr",
    "numcodecs",
    "numpy",
    "pillow",
    "dask",
    "prefect",
    "matplotlib",
)


def quarantine(found: Quarantine) -> Markup:
    """Return how many files do not decode, and the first of them."""
    if not found.total:
        said = "Every image decodes." if found.total == 0 else "There is no quarantine table."
        return section("quarantine", "Images left out", note(said))
    noun = "file does" if found.total == 1 else "files do"
    said = f"{found.total:,} {noun} not decode and took no part."
    if found.total > len(found.first):
        said += f" The first {len(found.first)}; all are in data/quarantine.csv of the workspace."
    return section(
        "quarantine",
        "Images left out",
        note(said),
        table("Files that do not decode", ["Path", "Reason"], found.first, texts=2),
    )


def shortened(value: Any) -> Any:
    """Return a setting for show: of an absolute path, only its last part.

    The page is made to be passed on; where things lie on this machine is nobody's business.
    """
    if isinstance(value, Mapping):
        return {str(key): shortened(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [shortened(item) for item in value]
    is_place = isinstance(value, str) and (Path(value).is_absolute() or "://" in value)
    if isinstance(value, PurePath) or is_place:
        return Path(value).name
    return value


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return MISSING


def _settings(project: Project, student: Run) -> list[tuple[str, object]]:
    config, labels = project.student, project.labels
    temperatures = ", ".join(f"{value:g}" for value in labels.temperatures)
    return [
        ("Data", project.data.source),
        *_wrong_labels(project),
        ("Views of an image", f"{project.views.count} (seed {project.views.seed})"),
        ("Teachers", f"{len(project.teachers)}"),
        (
            "Labels",
            f"{described(labels.selection, labels.k, labels.top_p)}, {labels.activation}, "
            f"{labels.precision}, temperatures {temperatures}",
        ),
        (
            "Student",
            f"{config.builder}, head {config.head.name}, "
            f"{config.input.size} pixels, {config.input.channels} channels",
        ),
        ("Objective", student["objective"]),
        (
            "Training",
            f"{config.epochs} epochs of batches of {config.batch_size}, "
            f"{config.optimizer.name}, learning rate {config.optimizer.lr:g}, "
            f"{config.schedule.name}, seed {config.seed}",
        ),
        ("Run", element("code", student["folder"])),
        *_partial_labels(student),
    ]


def _wrong_labels(project: Project) -> list[tuple[str, object]]:
    noise = project.label_noise
    if noise is None:
        return []
    whence = "all classes" if noise.among == "all" else "those of the vertical"
    return [
        ("Wrong training labels", f"{noise.share:.0%} on purpose, of {whence} (seed {noise.seed})")
    ]


def _partial_labels(student: Run) -> list[tuple[str, object]]:
    """Return what the student was trained on, where that was not every label."""
    found = student.get("labels") or {}
    short = {name: pair for name, pair in found.items() if pair[0] < pair[1] or not pair[1]}
    said = [
        f"{name} {labels:,} of {wanted:,}" if wanted else f"{name} none"
        for name, (labels, wanted) in short.items()
    ]
    return [("Labels used (rows x views)", f"{', '.join(said)}; all others whole")] if said else []


def provenance(project: Project, evaluation: Mapping[str, Any], written: datetime) -> Markup:
    """Return settings, versions, date and the whole project file.

    Args:
        project: As loaded.
        evaluation: From `evaluate_runs`.
        written: When the page is written, with its time zone.
    """
    student = runs_by_role(evaluation)["student"]
    rows = _settings(project, student)
    rows.append(("Evaluation", element("code", evaluation.get("fingerprint", MISSING))))
    versions = ", ".join(
        f"{name} {found}" for name in PACKAGES if (found := _version(name)) != MISSING
    )
    rows.append(("Versions", f"Python {platform.python_version()}, {versions}"))
    moment = written.strftime("%Y-%m-%d %H:%M %Z")
    shown = element("time", moment, datetime=written.isoformat(timespec="seconds"))
    rows.append(("Report written", shown))
    whole = yaml.safe_dump(
        shortened(project.model_dump(mode="python")), sort_keys=False, allow_unicode=True
    )
    return section(
        "provenance",
        "How it was made",
        element(
            "dl",
            *(element("div", element("dt", name), element("dd", value)) for name, value in rows),
            class_="facts",
        ),
        element(
            "details",
            element("summary", "All settings"),
            note("Paths are shortened to their last part."),
            element("pre", whole, tabindex="0"),
        ),
    )
