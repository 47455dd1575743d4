"""Runs and specialists as tables, and the learning curves."""

from __future__ import annotations

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
    table,
)
from pipeline.report.plots import learning_curve
from pipeline.report.sections import ROLES, figure, folded, note, runs_by_role, section

_CAVEAT = " Student and control minimise different losses: compare the shapes, not the heights."


def networks(evaluation: Mapping[str, Any]) -> Markup:
    """Return the runs and the specialists as tables."""
    runs = list(runs_by_role(evaluation).values())
    measures: list[tuple[str, list[Any]]] = [
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
        ("Training time", [_duration(run["seconds"]) for run in runs]),
    ]
    compared = table(
        "Student and control" if len(runs) > 1 else "Student",
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
    return section(
        "networks",
        "Networks",
        note(
            "Calibration error: the mean gap between confidence and accuracy; 0 is best. Agrees: "
            "how often a network, choosing among a specialist's classes, names what the "
            "specialist names."
        ),
        compared,
        folded(listed, len(specialists), "specialists") if specialists else "",
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
        note("Losses of single training batches.", _CAVEAT if len(drawings) > 1 else ""),
        element("div", *drawings, class_="figures"),
    )
