"""From a matplotlib figure to an SVG that lives inside the page.

In: the style of all plots, and the rewriting that lets the page's light and dark colours reach
into them. Left out: which plots there are (plots.py).

Figures are drawn with placeholder colours that become CSS variables. Text stays text. Nothing
here uses pyplot: figures are plain objects, and settings hold only while one is drawn.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from typing import Final

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.report.markup import Markup, element

# Colours that no figure uses otherwise; each becomes `var(--name)`.
PALETTE: Final = {
    name: f"#01{position:02x}fe"
    for position, name in enumerate(
        ("specialist", "control", "student", "ink", "muted", "rule", "wrong", "page")
    )
}
_STYLE: Final = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "axes.formatter.use_mathtext": False,
    "axes.unicode_minus": True,
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.labelsize": 11,
    "xtick.labelsize": 10.5,
    "ytick.labelsize": 10.5,
    "legend.fontsize": 10.5,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "axes.facecolor": "none",
    "axes.edgecolor": PALETTE["rule"],
    "axes.labelcolor": PALETTE["muted"],
    "text.color": PALETTE["ink"],
    "xtick.color": PALETTE["rule"],
    "ytick.color": PALETTE["rule"],
    "xtick.labelcolor": PALETTE["muted"],
    "ytick.labelcolor": PALETTE["muted"],
    "grid.color": PALETTE["rule"],
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.8,
}
_POINTS = 72


def draw(
    name: str, title: str, size: tuple[float, float], paint: Callable[[Axes], object]
) -> Markup:
    """Draw one figure and return it as an inline SVG.

    Args:
        name: Differs from those of all other figures of the page; ASCII.
        title: What it shows, for readers who do not see it.
        size: Width and height in CSS pixels at scale 1.
        paint: Fills the axes.

    Returns:
        The same bytes for the same figure.
    """
    buffer = io.StringIO()
    with style.context(["default", _STYLE | {"svg.hashsalt": name}]), warnings.catch_warnings():
        # The page's fonts show the text, so what matplotlib's own font lacks does not matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=(size[0] / _POINTS, size[1] / _POINTS), layout="constrained")
        paint(figure.add_subplot())
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return _inline(buffer.getvalue(), name, title)


def _inline(document: str, name: str, title: str) -> Markup:
    view = re.search(r'viewBox="([\d. ]+)"', document)
    body = document[document.index(">", document.index("<svg")) + 1 : document.rindex("</svg>")]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r"<defs>\s*</defs>", "", body)
    used = set(re.findall(r'(?:href="#|url\(#)([\w.-]+)', body))
    body = re.sub(
        r' id="([^"]*)"',
        lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "",
        body,
    )
    body = re.sub(r'href="#', f'href="#{name}-', body)
    body = re.sub(r"url\(#", f"url(#{name}-", body)
    body = re.sub(r' style="([^"]*)"', lambda found: f' style="{_themed(found[1])}"', body)
    body = re.sub(r"\s*\n\s*", " ", body)
    return element(
        "svg",
        element("title", title),
        Markup(body),
        **{"class": "plot", "role": "img", "viewBox": view[1] if view else None},
        aria_label=title,
    )


def _themed(declarations: str) -> str:
    declarations = re.sub(r"font-family: [^;]*;? ?", "", declarations)
    declarations = re.sub(
        r"font: [^;]*?([\d.]+px)[^;]*", lambda found: f"font-size: {found[1]}", declarations
    )
    for name, color in PALETTE.items():
        declarations = declarations.replace(color, f"var(--{name})")
    return declarations
