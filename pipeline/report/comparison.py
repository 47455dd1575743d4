"""The sections that compare student, control and specialists.

In: headline, accuracy by vertical, runs and specialists as tables, confusions, learning curves.
Left out: labels, images and provenance (provenance.py), and the page around them (page.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.report.markup import (
    MISSING,
    Markup,
    count,
    decimal,
    element,
    joined,
    percent,
    short,
    signed,
    table,
)
from pipeline.report.plots import accuracy_by_vertical, confusion_map, learning_curve

CHART_VERTICALS = 100
TABLE_OPEN_UP_TO = 15
MAP_VERTICALS = 24
FLOWS_SHOWN = 10
ROLES = {"specialist": "Specialist", "control": "Control", "student": "Student"}

Run = Mapping[str, Any]


def section(anchor: str, heading: str, *children: object) -> Markup:
    """Return a section of the page."""
    return element(
        "section",
        element("h2", heading, id=f"{anchor}-h"),
        *children,
        id=anchor,
        aria_labelledby=f"{anchor}-h",
    )


def note(*children: object) -> Markup:
    """Return a paragraph that explains what is shown."""
    return element("p", *children, class_="note")


def figure(drawing: Markup, caption: object) -> Markup:
    """Return a drawing under its caption."""
    return element("figure", element("figcaption", caption), drawing)


def runs_by_role(evaluation: Mapping[str, Any]) -> dict[str, Run]:
    """Return the student's run and, where there is one, its control's."""
    return {run["role"]: run for run in evaluation["runs"]}


def legend(roles: Sequence[str]) -> Markup:
    """Return what the colours mean."""
    return element(
        "ul",
        *(
            element(
                "li",
                element("span", class_=f"swatch swatch-{role}", aria_hidden="true"),
                ROLES[role],
            )
            for role in roles
        ),
        class_="legend",
    )


def _tile(label: str, value: object, detail: object, kind: str = "") -> Markup:
    return element(
        "div",
        element("dt", label),
        element("dd", element("span", value, class_="value"), element("span", detail)),
        class_=f"tile {kind}".strip(),
    )


def _standard_error(run: Run) -> float | None:
    if run["top1"] is None or not run["images"]:
        return None
    share = run["top1"] / 100
    return 100 * math.sqrt(share * (1 - share) / run["images"])


def headline(evaluation: Mapping[str, Any], bytes_per_label: float | None) -> Markup:
    """Return the numbers that matter most.

    Args:
        evaluation: From `evaluate_runs`.
        bytes_per_label: Over all train stores; None when unknown.
    """
    runs = runs_by_role(evaluation)
    student, control = runs["student"], runs.get("control")
    images = f"top-1 on {count(student['images'])} unseen images"
    tiles = [_tile("Student", percent(student["top1"]), images, "student")]
    if control is not None:
        tiles.append(
            _tile("Control", percent(control["top1"]), "same network on hard labels", "control")
        )
        if student["top1"] is not None and control["top1"] is not None:
            difference = signed(student["top1"] - control["top1"])
            tiles.append(_tile("Difference", difference, "points, student less control"))
    verticals = len(evaluation["verticals"])
    specialists = evaluation["specialists"]
    known = [s["cost"]["parameters"] for s in specialists.values() if "parameters" in s["cost"]]
    own = student["cost"]["parameters"]
    if not known:
        detail = "specialists' size unknown"
    else:
        ratio = f", {decimal(sum(known) / own)} times as many" if own else ""
        missing = len(specialists) - len(known)
        unknown = f" ({missing} of unknown size left out)" if missing else ""
        detail = f"against {short(sum(known))} in {_plural(len(known), 'specialist')}{ratio}"
        detail += unknown
    tiles += [
        _tile("Classes", count(evaluation["classes"]), f"in {_plural(verticals, 'vertical')}"),
        _tile("Parameters", short(own), detail),
        _tile("Bytes a label", decimal(bytes_per_label), "in the train stores, all included"),
    ]
    error = _standard_error(student)
    sampling = (
        ""
        if error is None
        else (
            f" The standard error of the student's figure from the number of images alone is "
            f"{error:.1f} points; how it varies with the seed is not measured here."
        )
    )
    basis = "Accuracy is among all classes, in one unaugmented view of each image."
    return joined([element("dl", *tiles, class_="tiles"), note(basis, sampling)])


def _plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def specialist_inside(specialists: Mapping[str, Any], vertical: str) -> float | None:
    """Return the accuracy of the specialists that name classes of this vertical only.

    Several of them are averaged by their images.
    """
    own = [
        s
        for s in specialists.values()
        if s["verticals"] == [vertical] and s["top1"] is not None and s["images"]
    ]
    images = sum(s["images"] for s in own)
    return sum(s["top1"] * s["images"] for s in own) / images if images else None


def accuracy(evaluation: Mapping[str, Any]) -> Markup:
    """Return accuracy by vertical as charts and a table."""
    runs = runs_by_role(evaluation)
    specialists = evaluation["specialists"]
    verticals: list[str] = list(evaluation["verticals"])
    own = {name: specialist_inside(specialists, name) for name in verticals}
    per_run = {role: runs[role]["verticals"] for role in ("control", "student") if role in runs}
    charted = sorted(
        sorted(verticals, key=lambda v: -per_run["student"][v]["images"])[:CHART_VERTICALS],
        key=verticals.index,
    )
    inside = {role: [found[v]["top1_inside"] for v in charted] for role, found in per_run.items()}
    if any(value is not None for value in own.values()):
        inside = {"specialist": [own[v] for v in charted], **inside}
    among = {role: [found[v]["top1"] for v in charted] for role, found in per_run.items()}
    notes = [
        "Inside: the answer is chosen among the classes of the image's vertical, as a "
        "specialist does. Among all: it is chosen among all classes."
    ]
    if any(v is None for v in own.values()):
        notes.append(" A specialist that covers several verticals is in the table of specialists.")
    if len(charted) < len(verticals):
        notes.append(f" The charts show the {len(charted)} verticals with the most images.")
    charts = _charts(charted, inside, among)
    rows = _vertical_table(verticals, own, per_run)
    if len(verticals) > TABLE_OPEN_UP_TO:
        summary = element("summary", f"Table of all {len(verticals):,} verticals")
        rows = element("details", summary, rows)
    return section(
        "accuracy",
        "Accuracy by vertical",
        note(*notes),
        legend(list(inside)),
        charts,
        rows,
    )


def _charts(
    verticals: Sequence[str],
    inside: Mapping[str, Sequence[float | None]],
    among: Mapping[str, Sequence[float | None]],
) -> Markup:
    drawings = []
    for name, caption, series in (
        ("inside", "Inside its vertical", inside),
        ("among", "Among all classes", among),
    ):
        known = [
            at for at in range(len(verticals)) if any(v[at] is not None for v in series.values())
        ]
        if not known:
            continue
        spoken = f"{caption}: top-1 accuracy by vertical of {', '.join(series)}; also in the table"
        drawing = accuracy_by_vertical(name, spoken, verticals, series)
        drawings.append(figure(drawing, joined([caption, ", top-1"])))
    return element("div", *drawings, class_="figures")


def _vertical_table(
    verticals: Sequence[str],
    own: Mapping[str, float | None],
    per_run: Mapping[str, Mapping[str, Any]],
) -> Markup:
    controlled = "control" in per_run
    header = ["Vertical", "Classes", "Images", "Specialist"]
    header += ["Control inside"] if controlled else []
    header += ["Student inside"]
    header += ["Control among all"] if controlled else []
    header += ["Student among all"]
    header += ["Difference"] if controlled else []
    rows = []
    for name in verticals:
        here = per_run["student"][name]
        row: list[object] = [element("bdi", name), count(here["classes"]), count(here["images"])]
        row.append(percent(own[name]))
        there = per_run["control"][name] if controlled else None
        row += [percent(there["top1_inside"])] if there else []
        row.append(percent(here["top1_inside"]))
        row += [percent(there["top1"])] if there else []
        row.append(element("strong", percent(here["top1"])))
        if there:
            known = here["top1"] is not None and there["top1"] is not None
            row.append(signed(here["top1"] - there["top1"]) if known else MISSING)
        rows.append(row)
    return table("Top-1 accuracy by vertical, on unseen images", header, rows)


def networks(evaluation: Mapping[str, Any]) -> Markup:
    """Return the runs and the specialists as tables."""
    runs = list(runs_by_role(evaluation).values())
    measures = [
        ("Objective", [element("code", run["objective"]) for run in runs]),
        ("Top-1 among all classes", [percent(run["top1"]) for run in runs]),
        ("Top-5 among all classes", [percent(run["top5"]) for run in runs]),
        ("Top-1 inside the vertical", [percent(run["top1_inside"]) for run in runs]),
        ("Mean per-vertical average precision", [percent(run["mpvap"]) for run in runs]),
        ("Expected calibration error", [percent(run["calibration_error"]) for run in runs]),
        ("Mean entropy of the answers, nats", [decimal(run["entropy"], 2) for run in runs]),
        ("Parameters", [short(run["cost"]["parameters"]) for run in runs]),
        ("Operations of one image", [short(run["cost"]["flops"], "FLOP") for run in runs]),
        ("Training steps", [count(run["steps"]) for run in runs]),
        ("Training time of the last start", [_duration(run["seconds"]) for run in runs]),
    ]
    compared = table(
        "Student and control",
        ["Measure", *(ROLES[run["role"]] for run in runs)],
        [[name, *values] for name, values in measures],
    )
    specialists = evaluation["specialists"]
    rows = []
    for name, values in specialists.items():
        agreement = [percent(run["agreement"].get(name)) for run in runs]
        rows.append(
            [
                name,
                _verticals(values["verticals"]),
                count(values["classes"]),
                count(values["images"]),
                percent(values["top1"]),
                percent(values["top5"]),
                *agreement,
                short(values["cost"].get("parameters")),
                short(values["cost"].get("flops"), "FLOP"),
            ]
        )
    header = ["Specialist", "Verticals", "Classes", "Images", "Top-1", "Top-5"]
    header += [f"{ROLES[run['role']]} agrees" for run in runs]
    listed = table(
        "Specialists, on unseen images of their own classes",
        [*header, "Parameters", "Operations"],
        rows,
        texts=2,
    )
    if len(specialists) > TABLE_OPEN_UP_TO:
        summary = element("summary", f"Table of all {len(specialists):,} specialists")
        listed = element("details", summary, listed)
    return section(
        "networks",
        "Networks",
        note(
            "Calibration error: the mean gap between confidence and accuracy; 0 is best. Agrees: "
            "how often a network, choosing among a specialist's classes, names what the "
            "specialist names."
        ),
        compared,
        listed,
    )


def _verticals(names: Sequence[str]) -> Markup:
    shown = [element("bdi", name) for name in names[:3]]
    more = [f"{len(names) - 3} more"] if len(names) > 3 else []
    parts = [*shown, *more]
    separated = [part for pair in zip(parts, [", "] * len(parts), strict=True) for part in pair]
    return joined(separated[:-1])


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return MISSING
    if seconds < 120:
        return f"{seconds:.0f}\u00a0s"
    if seconds < 7200:
        return f"{seconds / 60:.1f}\u00a0min"
    return f"{seconds / 3600:.1f}\u00a0h"


def confusions(evaluation: Mapping[str, Any]) -> Markup:
    """Return which vertical is taken for which."""
    verticals: list[str] = list(evaluation["verticals"])
    if len(verticals) < 2:
        return Markup("")
    runs = runs_by_role(evaluation)
    counts = {role: np.array(run["vertical_confusions"]) for role, run in runs.items()}
    across = counts["student"]
    shares = {
        role: 100 * (1 - np.trace(values) / values.sum()) if values.sum() else None
        for role, values in counts.items()
    }
    said = [
        f"The student names a class of another vertical for {percent(shares['student'])} of "
        "the images"
    ]
    if "control" in shares:
        said.append(f", the control for {percent(shares['control'])}")
    said.append(
        ". Each row of the map is divided by its images. Grey stays in its vertical; red "
        "leaves it, darker for a larger share."
    )
    names, shown = _condensed(verticals, across)
    if len(names) < len(verticals):
        said.append(
            f" The map shows the {len(names) - 1} verticals with the most confusions; "
            "the others are taken together."
        )
    spoken = "Named vertical by true vertical; the largest off-diagonal cells are in the table"
    drawing = figure(
        confusion_map("confusions", spoken, names, shown), "Student, images by vertical"
    )
    return section(
        "confusions",
        "Confusions across verticals",
        note(*said),
        element("div", drawing, _flows(verticals, counts), class_="figures"),
    )


def _condensed(
    verticals: list[str], counts: np.ndarray[Any, np.dtype[np.int64]]
) -> tuple[list[str], np.ndarray[Any, np.dtype[np.int64]]]:
    if len(verticals) <= MAP_VERTICALS:
        return verticals, counts
    leaving = counts.sum(axis=0) + counts.sum(axis=1) - 2 * np.diag(counts)
    kept = np.sort(np.argsort(-leaving, kind="stable")[: MAP_VERTICALS - 1])
    group = np.full(len(verticals), len(kept))
    group[kept] = np.arange(len(kept))
    found = np.zeros((len(kept) + 1, len(kept) + 1), dtype=np.int64)
    np.add.at(found, (group[:, None], group[None, :]), counts)
    return [*(verticals[at] for at in kept), "(others)"], found


def _flows(
    verticals: Sequence[str], counts: Mapping[str, np.ndarray[Any, np.dtype[np.int64]]]
) -> Markup:
    wrong = counts["student"].copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:FLOWS_SHOWN]
    rows = []
    for true, named in zip(*np.unravel_index(order, wrong.shape), strict=True):
        if wrong[true, named] == 0:
            break
        share = 100 * wrong[true, named] / counts["student"][true].sum()
        row = [element("bdi", verticals[true]), element("bdi", verticals[named])]
        row += [count(values[true, named]) for role, values in sorted(counts.items())]
        rows.append([*row, percent(share)])
    if not rows:
        return note("No image is taken for a class of another vertical.")
    header = ["True", "Named", *(ROLES[role] for role in sorted(counts)), "Of its images"]
    return table("Largest confusions of the student, images", header, rows, texts=2)


def curves(evaluation: Mapping[str, Any], columns: Mapping[str, dict[str, list[float]]]) -> Markup:
    """Return the learning curves.

    Args:
        evaluation: From `evaluate_runs`.
        columns: Role to the columns of its `metrics.csv`; empty when it cannot be read.
    """
    drawings = []
    for role, run in runs_by_role(evaluation).items():
        found = dict(columns.get(role) or {})
        if not found:
            drawings.append(note(f"The {role} has no readable metrics.csv."))
            continue
        epochs = found.pop("epoch")
        losses = found if len(found) > 2 else {"loss": found["loss"]}
        spoken = (
            f"Loss of the {role} over {epochs[-1]:.0f} epochs, from {losses['loss'][0]:.3g} to "
            f"{losses['loss'][-1]:.3g}"
        )
        drawing = learning_curve(f"curve-{role}", spoken, role, epochs, losses)
        caption = joined([f"{ROLES[role]}, training loss ", element("code", run["objective"])])
        drawings.append(figure(drawing, caption))
    return section(
        "curves",
        "Learning curves",
        note(
            "Losses of single training batches. Student and control minimise different losses: "
            "compare the shapes, not the heights."
        ),
        element("div", *drawings, class_="figures"),
    )
