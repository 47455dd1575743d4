"""The headline, and accuracy by vertical of specialist, control and student.

In: tiles, charts and a table. Left out: everything else that compares networks (networks.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

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
from pipeline.report.plots import accuracy_by_vertical
from pipeline.report.sections import Run, figure, folded, legend, note, runs_by_role, section, tile
from storage_schemas.printable import counted

CHART_VERTICALS = 100


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
    tiles = [tile("Student", percent(student["top1"]), images, "student")]
    if control is not None:
        tiles.append(
            tile("Control", percent(control["top1"]), "same network on hard labels", "control")
        )
        if student["top1"] is not None and control["top1"] is not None:
            difference = signed(student["top1"] - control["top1"])
            tiles.append(tile("Difference", difference, "points, student less control"))
    verticals = len(evaluation["verticals"])
    specialists = evaluation["specialists"]
    known = [s["cost"]["parameters"] for s in specialists.values() if "parameters" in s["cost"]]
    own = student["cost"]["parameters"]
    if not known:
        detail = "specialists' size unknown"
    else:
        ratio = f", {sum(known) / own:.2g} times as many" if own else ""
        missing = len(specialists) - len(known)
        unknown = f" ({missing} of unknown size left out)" if missing else ""
        detail = f"against {short(sum(known))} in {counted(len(known), 'specialist')}{ratio}"
        detail += unknown
    tiles += [
        tile("Classes", count(evaluation["classes"]), f"in {counted(verticals, 'vertical')}"),
        tile("Parameters", short(own), detail),
        tile("Bytes a label", decimal(bytes_per_label), "in the train stores, all included"),
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
    return joined(
        [
            element("dl", *tiles, class_="tiles" if control is not None else "tiles four"),
            note(basis, sampling),
        ]
    )


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
    per_run: dict[str, Any] = {
        role: runs[role]["verticals"] for role in ("control", "student") if role in runs
    }
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
    if _partial(evaluation):
        notes.append(" A specialist that names only some classes is measured on images of those.")
    if len(charted) < len(verticals):
        notes.append(f" The charts show the {len(charted)} verticals with the most images.")
    charts = _charts(charted, inside, among)
    rows = folded(_vertical_table(verticals, own, per_run), len(verticals), "verticals")
    return section(
        "accuracy",
        "Accuracy by vertical",
        note(*notes),
        legend(list(inside)),
        charts,
        rows,
    )


def _partial(evaluation: Mapping[str, Any]) -> bool:
    classes = {
        name: values["classes"]
        for name, values in runs_by_role(evaluation)["student"]["verticals"].items()
    }
    return any(
        s["classes"] < sum(classes.get(name, 0) for name in s["verticals"])
        for s in evaluation["specialists"].values()
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
