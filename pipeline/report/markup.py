"""HTML that is escaped by construction, and how numbers are written.

In: `Markup`, elements and tables that escape every child and attribute which is not `Markup`
already, and number formats. Left out: what the page says (sections.py).

Class names, file names and reasons come from outside. None of them can leave the text or the
attribute that it stands in.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from typing import Final, final

from storage_schemas.printable import printable

MISSING: Final = "n/a"
_VOID = frozenset({"img", "meta", "br"})


@final
class Markup(str):
    """A string that is HTML already."""

    __slots__ = ()


def escaped(value: object) -> Markup:
    """Return a value as HTML text; `Markup` as it is."""
    if isinstance(value, Markup):
        return value
    return Markup(html.escape(printable(value), quote=True))


def joined(parts: Iterable[object]) -> Markup:
    """Return the parts one after the other, escaped where needed."""
    return Markup("".join(escaped(part) for part in parts))


def element(tag: str, *children: object, **attributes: object) -> Markup:
    """Return an element.

    Args:
        tag: A constant of ours, never input.
        children: Escaped unless `Markup`.
        attributes: `class_` is class and `aria_label` is aria-label; None leaves one out.
    """
    names = {name: name.rstrip("_").replace("_", "-") for name in attributes}
    head = "".join(
        f' {names[name]}="{html.escape(printable(value), quote=True)}"'
        for name, value in attributes.items()
        if value is not None
    )
    if tag in _VOID:
        return Markup(f"<{tag}{head}>")
    return Markup(f"<{tag}{head}>{joined(children)}</{tag}>")


def table(
    caption: str,
    header: Sequence[object],
    rows: Iterable[Sequence[object]],
    *,
    texts: int = 1,
    foot: Sequence[object] | None = None,
) -> Markup:
    """Return a table whose first column heads its rows.

    Args:
        caption: For readers of the table alone; always there, for screen readers.
        header: Column names.
        rows: As many cells each.
        texts: How many columns on the left are text; the others are numbers.
        foot: A last row, set apart.
    """

    def line(cells: Sequence[object]) -> Markup:
        first = element("th", cells[0], scope="row")
        rest = (
            element("td", cell, class_=None if at < texts else "number")
            for at, cell in enumerate(cells[1:], start=1)
        )
        return element("tr", first, *rest)

    heads = (
        element("th", cell, scope="col", class_=None if at < texts else "number")
        for at, cell in enumerate(header)
    )
    body = element(
        "table",
        element("thead", element("tr", *heads)),
        element("tbody", *(line(row) for row in rows)),
        element("tfoot", line(foot)) if foot else "",
        aria_label=caption,
    )
    # The caption stays in sight when a wide table is scrolled sideways on a phone.
    scrolled = element("div", body, class_="scroll", tabindex="0", role="group", aria_label=caption)
    return element("figure", element("figcaption", caption), scrolled)


def decimal(value: float | None, digits: int = 1, unit: str = "") -> str:
    """Return a rounded number, or `MISSING` for None and what is not finite."""
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{value:,.{digits}f}{unit}"


def percent(value: float | None, digits: int = 1) -> str:
    """Return a value that is in percent already."""
    return decimal(value, digits, "\u00a0%")


def signed(value: float | None, digits: int = 1) -> str:
    """Return a difference with its sign."""
    shown = decimal(value, digits)
    if value is None or shown == MISSING:
        return shown
    if float(shown.replace(",", "")) == 0:
        return shown.lstrip("-")
    return f"+{shown}" if value > 0 else shown.replace("-", "\u2212")


def count(value: float | None) -> str:
    """Return a whole number with thousands set apart."""
    return decimal(value, 0)


def short(value: float | None, unit: str = "") -> str:
    """Return a large number with three digits and k, M, G or T."""
    if value is None or not math.isfinite(value):
        return MISSING
    for power, name in ((4, "T"), (3, "G"), (2, "M"), (1, "k")):
        if abs(value) >= 0.9995 * 1000**power:
            return f"{value / 1000**power:.3g}\u00a0{name}{unit}"
    return f"{value:,.0f}\u00a0{unit}" if unit else f"{value:,.0f}"


def clipped(name: str, length: int = 24) -> str:
    """Return a name for a plot: printable, no longer than this, its middle left out."""
    name = printable(name)
    if len(name) <= length:
        return name
    tail = length // 3
    return f"{name[: length - tail - 1]}\u2026{name[-tail:]}"
