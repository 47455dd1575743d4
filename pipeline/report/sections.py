"""Pieces that all sections share: the frame of a section, notes, figures, legend, roles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.report.markup import Markup, element

ROLES = {"specialist": "Specialist", "control": "Control", "student": "Student"}
TABLE_OPEN_UP_TO = 15

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


def tile(label: str, value: object, detail: object, kind: str = "") -> Markup:
    """Return one number of a headline, with its name and a line that explains it."""
    return element(
        "div",
        element("dt", label),
        element("dd", element("span", value, class_="value"), element("span", detail)),
        class_=f"tile {kind}".strip(),
    )


def figure(drawing: Markup, caption: object) -> Markup:
    """Return a drawing under its caption."""
    return element("figure", element("figcaption", caption), drawing)


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


def runs_by_role(evaluation: Mapping[str, Any]) -> dict[str, Run]:
    """Return the student's run and, where there is one, its control's."""
    return {str(run["role"]): run for run in evaluation["runs"]}


def folded(rows: Markup, number: int, noun: str) -> Markup:
    """Return a table, folded away when it is long."""
    if number <= TABLE_OPEN_UP_TO:
        return rows
    return element("details", element("summary", f"Table of all {number:,} {noun}"), rows)
