"""The page: one HTML file that needs nothing else and runs no script.

In: the order of the sections, the document around them, writing it. Left out: what the sections
say. The content security policy admits the page's own style sheet, by its digest, and images in
data URIs; nothing else is loaded or run, whatever a class name may hold.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.config import Project
from pipeline.durable_files import write_durably
from pipeline.report.accuracy import accuracy, headline
from pipeline.report.confusions import confusions
from pipeline.report.labels import bytes_per_label, soft_labels
from pipeline.report.markup import Markup, count, element, joined
from pipeline.report.material import read_curves, read_labels, read_quarantine
from pipeline.report.networks import curves, networks
from pipeline.report.provenance import provenance, quarantine
from pipeline.report.samples import read_images, sample_cards
from pipeline.report.sections import note, runs_by_role, section
from pipeline.report.stylesheet import STYLESHEET

_STYLE = re.compile(r' style="([^"]*)"')


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
    columns = {
        role: read_curves(project.workspace / run["folder"] / "metrics.csv")
        for role, run in runs.items()
    }
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
    return _document(f"{project.student.name}: report", body)


def _header(project: Project, evaluation: Mapping[str, Any], written: datetime) -> Markup:
    specialists = len(evaluation["specialists"])
    objective = runs_by_role(evaluation)["student"]["objective"]
    signal = f"the stored soft labels of {specialists:,} specialist{'s' * (specialists != 1)}"
    if objective == "hard_labels":
        signal = "hard labels"
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


def _document(title: str, body: Markup) -> str:
    lifted, rules = _lift_styles(body)
    style = STYLESHEET + rules
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii")
    policy = (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        # Written by hand: escaping its quotes would be right too, and unreadable.
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", name="referrer", content="no-referrer"),
        element("title", title),
        Markup(f"<style>{style}</style>"),
    )
    return f"<!doctype html>\n{element('html', head, element('body', lifted), lang='en')}\n"


def _lift_styles(body: str) -> tuple[Markup, str]:
    """Turn every style attribute into a class, so that the policy can forbid inline styles.

    Escaped text holds no quotes, so that only attributes of ours can match.
    """
    names: dict[str, str] = {}

    def name(found: re.Match[str]) -> str:
        return f' class="{names.setdefault(found[1], f"s{len(names)}")}"'

    lifted = _STYLE.sub(name, body)
    return Markup(lifted), "".join(f".{name}{{{rule}}}\n" for rule, name in names.items())
