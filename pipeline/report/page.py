"""The page: one HTML file that needs nothing else and runs no script.

In: the order of the sections, and writing the page. Left out: what the sections say, and the
document around them (document.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.config import Project
from pipeline.durable_files import write_durably
from pipeline.report.accuracy import accuracy, headline
from pipeline.report.confusions import confusions
from pipeline.report.document import document
from pipeline.report.labels import bytes_per_label, soft_labels
from pipeline.report.markup import Markup, count, element, joined
from pipeline.report.material import read_curves, read_labels, read_quarantine
from pipeline.report.networks import curves, networks
from pipeline.report.provenance import provenance, quarantine
from pipeline.report.samples import read_images, sample_cards
from pipeline.report.sections import note, runs_by_role, section


def write_report(
    project: Project,
    evaluation: Mapping[str, Any],
    folder: Path,
    *,
    written: datetime | None = None,
) -> Path:
    """Write the report of an evaluation.

    Args:
        project: Whose workspace holds the runs, the published stores and the quarantine table.
            What is missing or damaged there is said in the page.
        evaluation: From `pipeline.training.evaluation.evaluate_runs`, with its `fingerprint`.
        folder: Receives `index.html`, whole or not at all.
        written: The date in the page; now when None.

    Returns:
        The path of the page.

    Raises:
        StoreError: If the page cannot be written.
    """
    path = folder / "index.html"
    page = report_page(project, evaluation, written or datetime.now(UTC))
    write_durably(path, page.encode())
    return path


def report_page(project: Project, evaluation: Mapping[str, Any], written: datetime) -> str:
    """Return the page; equal input gives equal bytes."""
    labels = read_labels(project)
    runs = runs_by_role(evaluation)
    columns = {role: read_curves(project.workspace / run["folder"]) for role, run in runs.items()}
    body = joined(
        [
            _header(project, evaluation, written),
            element(
                "main",
                headline(evaluation, bytes_per_label(labels)),
                accuracy(evaluation),
                networks(evaluation),
                _samples(project, evaluation),
                confusions(evaluation),
                curves(evaluation, columns),
                soft_labels(labels),
                quarantine(read_quarantine(project.workspace)),
                provenance(project, evaluation, written),
            ),
        ]
    )
    return document(f"{project.student.name}: report", body)


def _header(project: Project, evaluation: Mapping[str, Any], written: datetime) -> Markup:
    specialists = len(evaluation["specialists"])
    objective = runs_by_role(evaluation)["student"]["objective"]
    signal = f"the stored soft labels of {specialists:,} specialist{'s' * (specialists != 1)}"
    if objective in ("hard_labels", "multi_label"):
        signal = "hard labels" if objective == "hard_labels" else "hard labels and their parents"
    said = f"One network for {count(evaluation['classes'])} classes, trained on {signal}."
    return element(
        "header",
        element(
            "p", "Knowledge concentration ", element("span", f"{written:%Y-%m-%d}"), class_="kicker"
        ),
        element("h1", project.student.name),
        element("p", said, class_="lead"),
        class_="top",
    )


def _samples(project: Project, evaluation: Mapping[str, Any]) -> Markup:
    samples = evaluation["samples"]
    if not samples:
        return Markup("")
    images = read_images(project, [str(sample["key"]) for sample in samples])
    return section(
        "samples",
        "Sample images",
        note(
            "Test images at even distances, not chosen. Each with the five most probable classes "
            "of its specialist and of the student. A specialist chooses among its own classes "
            "only, so its percentages are not comparable one to one."
        ),
        sample_cards(samples, images),
    )
