"""The plots of the report, as functions from numbers to inline SVG.

In: accuracy by vertical, learning curves, confusions, histograms. Left out: how a figure becomes
part of the page (drawing.py), and reading anything from disk (material.py).

Every plot is drawn for a width of some 400 pixels, so that its text is readable on a phone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from pipeline.report.drawing import PALETTE, draw
from pipeline.report.markup import Markup, clipped, short

WIDTH = 400
BARS_UP_TO = 12
COUNTS_UP_TO = 10
CURVE_POINTS = 400
_MARKERS = {"specialist": "D", "control": "o", "student": "o"}

Series = Mapping[str, Sequence[float | None]]


def _values(values: Sequence[float | None]) -> npt.NDArray[np.float64]:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def accuracy_by_vertical(name: str, title: str, verticals: Sequence[str], series: Series) -> Markup:
    """Draw accuracies in percent: grouped bars, or one line of points each when there are many.

    Args:
        name: Of the figure.
        title: Spoken title.
        verticals: From top to bottom.
        series: Role to one value per vertical; None where there is no image.
    """
    few = len(verticals) <= BARS_UP_TO
    row = 13 * len(series) + 12 if few else 17
    shown = {role: _values(values) for role, values in series.items()}

    def paint(axes: Axes) -> None:
        places = np.arange(len(verticals))
        (_bars if few else _points)(axes, places, shown)
        axes.set_yticks(places, labels=[clipped(v, 20) for v in verticals], color=PALETTE["ink"])
        axes.set_ylim(len(verticals) - 0.5, -0.5)
        axes.set_xlim(0, 112 if few else 101)
        axes.set_xticks([0, 25, 50, 75, 100], labels=["0", "25", "50", "75", "100 %"])
        axes.grid(axis="x")
        axes.tick_params(length=0)
        axes.spines[["left", "bottom"]].set_visible(False)

    return draw(name, title, (WIDTH, row * len(verticals) + 40), paint)


def _bars(
    axes: Axes, places: npt.NDArray[np.int64], series: Mapping[str, npt.NDArray[np.float64]]
) -> None:
    height = 0.8 / len(series)
    for at, (role, values) in enumerate(series.items()):
        centres = places + (at - (len(series) - 1) / 2) * height
        axes.barh(centres, values, height * 0.86, color=PALETTE[role])
        for centre, value in zip(centres, values, strict=True):
            empty = np.isnan(value)
            axes.text(
                1 if empty else value + 1,
                centre,
                "n/a" if empty else f"{value:.1f}",
                va="center_baseline",
                fontsize=9.5,
                color=PALETTE["muted"],
            )


def _points(
    axes: Axes, places: npt.NDArray[np.int64], series: Mapping[str, npt.NDArray[np.float64]]
) -> None:
    stacked = np.stack(list(series.values()))
    known = ~np.isnan(stacked).all(axis=0)
    low, high = np.nanmin(stacked[:, known], axis=0), np.nanmax(stacked[:, known], axis=0)
    axes.hlines(places[known], low, high, color=PALETTE["muted"], linewidth=1, alpha=0.5)
    for role, values in series.items():
        axes.plot(
            values,
            places,
            linestyle="none",
            marker=_MARKERS[role],
            markersize=5 if role == "specialist" else 6,
            markerfacecolor=PALETTE["page" if role == "control" else role],
            markeredgecolor=PALETTE[role],
            markeredgewidth=1.4,
            clip_on=False,
        )


def learning_curve(
    name: str, title: str, role: str, epochs: Sequence[float], losses: Mapping[str, Sequence[float]]
) -> Markup:
    """Draw a run's loss and its terms over the epochs.

    Args:
        name: Of the figure.
        title: Spoken title.
        role: Whose colour.
        epochs: (n,).
        losses: `loss` first, then its terms where there are several, each (n,).
    """
    kept = np.unique(np.linspace(0, len(epochs) - 1, min(len(epochs), CURVE_POINTS)).astype(int))
    along = np.asarray(epochs, dtype=np.float64)[kept]
    curves = {label: np.asarray(values)[kept] for label, values in losses.items()}

    def paint(axes: Axes) -> None:
        for at, (label, values) in enumerate(curves.items()):
            dashes = ("-", (0, (4, 2)), (0, (1, 1.5)), "-.")[at % 4]
            axes.plot(
                along,
                values,
                color=PALETTE[role if at == 0 else "muted"],
                linestyle=dashes,
                linewidth=2 if at == 0 else 1.3,
                label=label.replace("_", " "),
                marker="o" if len(along) == 1 else None,
            )
        everything = np.concatenate(list(curves.values()))
        if everything.min() > 0 and everything.max() > 50 * everything.min():
            axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_xlabel("epoch")
        axes.grid(axis="y")
        axes.tick_params(length=0)
        axes.spines["left"].set_visible(False)
        if len(curves) > 1:
            axes.legend(loc="upper right")

    return draw(name, title, (WIDTH, 240), paint)


def confusion_map(
    name: str, title: str, verticals: Sequence[str], counts: npt.NDArray[np.int64]
) -> Markup:
    """Draw which vertical's classes are named for the images of each vertical.

    Each row is divided by its sum. What stays in the vertical is grey; what leaves it is red, on
    a scale of its own, since it is rare. Empty cells are left out.

    Args:
        name: Of the figure.
        title: Spoken title.
        verticals: In the order of both axes.
        counts: (V, V) images, true vertical by named vertical.
    """
    size = len(verticals)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    wrong = shares * (1 - np.eye(size))
    strongest = max(float(wrong.max(initial=0)), 1e-9)

    def paint(axes: Axes) -> None:
        for row, column in np.argwhere(counts > 0):
            diagonal = row == column
            share = shares[row, column]
            strength = 0.3 * share if diagonal else 0.08 + 0.5 * np.sqrt(share / strongest)
            axes.bar(
                column,
                0.94,
                0.94,
                row - 0.47,
                color=PALETTE["muted" if diagonal else "wrong"],
                alpha=round(float(strength), 2),
            )
            if size <= COUNTS_UP_TO:
                value = int(counts[row, column])
                shown = short(value).replace("\u00a0", "") if value >= 10_000 else f"{value}"
                axes.text(column, row, shown, ha="center", va="center", fontsize=10)
        labels = [clipped(vertical, 16) for vertical in verticals]
        small = 10.5 if size <= 14 else 8.5
        axes.set_xticks(range(size), labels=labels, rotation=90 if size > 3 else 0, fontsize=small)
        axes.set_yticks(range(size), labels=labels, fontsize=small)
        axes.set_xlim(-0.5, size - 0.5)
        axes.set_ylim(size - 0.5, -0.5)
        axes.set_xlabel("named")
        axes.set_ylabel("true")
        axes.tick_params(length=0, labelcolor=PALETTE["ink"])
        axes.spines[:].set_visible(False)

    return draw(name, title, (WIDTH, 100 + min(340, 44 * size + 30)), paint)


def histogram(
    name: str,
    title: str,
    label: str,
    edges: Sequence[float],
    counts: Sequence[int],
    *,
    mean: float | None = None,
    ticks: Mapping[float, str] | None = None,
) -> Markup:
    """Draw one histogram in the specialists' colour.

    Args:
        name: Of the figure.
        title: Spoken title.
        label: Of the horizontal axis.
        edges: (n + 1,).
        counts: (n,).
        mean: Marked by a line.
        ticks: Position to text; chosen by matplotlib when None.
    """

    def paint(axes: Axes) -> None:
        total = max(sum(counts), 1)
        axes.stairs(np.asarray(counts) / total, edges, fill=True, color=PALETTE["specialist"])
        if mean is not None:
            axes.axvline(mean, color=PALETTE["ink"], linewidth=1, linestyle=(0, (3, 2)))
        if ticks is not None:
            axes.set_xticks(list(ticks), labels=list(ticks.values()))
        else:
            axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(0, None)
        axes.set_xlabel(label)
        axes.set_yticks([])
        axes.tick_params(length=0)
        axes.spines["left"].set_visible(False)

    return draw(name, title, (250, 105), paint)
