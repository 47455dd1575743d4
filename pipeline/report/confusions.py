"""Which verticals are taken for which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.report.markup import Markup, count, element, percent, table
from pipeline.report.plots import confusion_map
from pipeline.report.sections import ROLES, figure, note, runs_by_role, section

MAP_VERTICALS = 24
FLOWS_SHOWN = 10

Counts = npt.NDArray[np.int64]


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
        "leaves it, stronger for a larger share."
    )
    names, shown = _condensed(verticals, across)
    if len(names) < len(verticals):
        said.append(
            f" The map shows the {len(names) - 1} verticals with the most confusions; "
            "the others are taken together, as one."
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


def _condensed(verticals: list[str], counts: Counts) -> tuple[list[str], Counts]:
    if len(verticals) <= MAP_VERTICALS:
        return verticals, counts
    leaving = counts.sum(axis=0) + counts.sum(axis=1) - 2 * np.diag(counts)
    kept = np.sort(np.argsort(-leaving, kind="stable")[: MAP_VERTICALS - 1])
    group = np.full(len(verticals), len(kept))
    group[kept] = np.arange(len(kept))
    found = np.zeros((len(kept) + 1, len(kept) + 1), dtype=np.int64)
    np.add.at(found, (group[:, None], group[None, :]), counts)
    return [*(verticals[at] for at in kept), "(others)"], found


def _flows(verticals: Sequence[str], counts: Mapping[str, Counts]) -> Markup:
    wrong = counts["student"].copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:FLOWS_SHOWN]
    rows = []
    for true, named in zip(*np.unravel_index(order, wrong.shape), strict=True):
        if wrong[true, named] == 0:
            break
        share = 100 * wrong[true, named] / counts["student"][true].sum()
        row: list[str] = [element("bdi", verticals[true]), element("bdi", verticals[named])]
        row += [count(values[true, named]) for role, values in sorted(counts.items())]
        rows.append([*row, percent(share)])
    if not rows:
        return note("No image is taken for a class of another vertical.")
    header = ["True", "Named", *(ROLES[role] for role in sorted(counts)), "Of its images"]
    return table("Largest confusions of the student, images", header, rows, texts=2)
