"""What the stores of soft labels hold, and what they cost."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.report.exactness import lost
from pipeline.report.markup import MISSING, Markup, count, decimal, element, percent, short, table
from pipeline.report.material import TeacherLabels
from pipeline.report.plots import histogram
from pipeline.report.sections import folded, note, section
from pipeline.store import StoreSummary

HISTOGRAMS = 12
PROBLEMS_SHOWN = 10
_TAIL_TICKS = {-6.0: "1e-6", -4.0: "1e-4", -2.0: "0.01", 0.0: "1"}


def bytes_per_label(labels: Sequence[TeacherLabels]) -> float | None:
    """Return the size of all train stores over all their labels; None when there is none."""
    stores = [found.train for found in labels if found.train is not None]
    total = sum(store.labels for store in stores)
    return sum(store.size_bytes for store in stores) / total if total else None


def _size(value: float) -> str:
    return short(value, "B")


def soft_labels(labels: Sequence[TeacherLabels]) -> Markup:
    """Return label entropy, tail mass and store sizes of every teacher."""
    listed = folded(_stores_table(labels), len(labels), "teachers")
    ranked = sorted(labels, key=lambda found: -found.train.labels if found.train else 0)
    drawn = [found for found in ranked[:HISTOGRAMS] if found.train and found.train.labels]
    panels = [
        _panel(found, at)
        for at, found in enumerate(sorted(drawn, key=lambda found: labels.index(found)))
    ]
    said = (
        "Each label keeps at most k classes and the mass of all others, its tail. "
        "Entropy near 0 is a label that says no more than a hard one; the axis ends at the "
        "entropy of a uniform guess. The dashed line is the mean. Tail mass is on a logarithmic "
        "axis; its first bin also holds what is smaller. Both are from about a million labels of "
        "each store, at even distances."
    )
    if len(labels) > HISTOGRAMS:
        said += f" Shown are the {len(panels)} teachers with the most labels."
    problems = [
        f"{found.teacher}: {problem}"
        for found in labels
        for problem in (
            *((found.problem,) if found.problem else ()),
            *(found.train.problems if found.train else ()),
            *(found.test.problems if found.test else ()),
        )
    ]
    return section(
        "labels",
        "Soft labels",
        note(said),
        warnings(problems),
        element("div", *panels, class_="panels"),
        listed,
        lost(labels),
    )


def warnings(problems: Sequence[str]) -> Markup:
    """Return what is wrong with the labels; nothing when all is well."""
    if not problems:
        return Markup("")
    more = len(problems) - PROBLEMS_SHOWN
    items = [element("li", problem) for problem in problems[:PROBLEMS_SHOWN]]
    if more > 0:
        items.append(element("li", f"and {more:,} more"))
    return element(
        "div",
        element("p", element("strong", "Not all labels could be read.")),
        element("ul", *items),
        class_="warning",
    )


def _panel(found: TeacherLabels, at: int) -> Markup:
    assert found.train is not None
    caption = element("figcaption", found.teacher)
    return element("figure", caption, *histograms(found.train, str(at)), class_="panel")


def histograms(store: StoreSummary, name: str) -> list[Markup]:
    """Return drawings of a store's entropy and tail mass.

    Args:
        store: Its summary.
        name: Sets the drawings apart from others in the page.
    """
    drawings = [
        histogram(
            f"entropy-{name}",
            f"{store.teacher}: label entropy, mean {store.entropy_mean:.2f} nats",
            "entropy, nats",
            store.entropy_edges,
            store.entropy_counts,
            mean=store.entropy_mean,
        )
    ]
    if store.tail_counts:
        drawings.append(
            histogram(
                f"tail-{name}",
                f"{store.teacher}: tail mass, mean {store.tail_mean:.2g}",
                "tail mass",
                store.tail_edges,
                store.tail_counts,
                ticks=_TAIL_TICKS,
            )
        )
    else:
        drawings.append(element("p", "no tail", class_="absent"))
    return drawings


def _stores_table(labels: Sequence[TeacherLabels]) -> Markup:
    header = [
        "Teacher",
        "Classes",
        "k",
        "Views",
        "Labels",
        "Size",
        "Bytes a label",
        "Mean entropy",
        "Mean tail",
        "Test labels",
        "Test size",
    ]
    rows = []
    for found in labels:
        train, test = found.train, found.test
        row: list[object] = [found.teacher]
        row += (
            [MISSING] * 8
            if train is None
            else [
                count(train.num_classes),
                count(train.k),
                count(train.num_views),
                count(train.labels),
                _size(train.size_bytes),
                decimal(train.bytes_per_label),
                decimal(train.entropy_mean, 2),
                percent(100 * train.tail_mean, 2),
            ]
        )
        row += [MISSING] * 2 if test is None else [count(test.labels), _size(test.size_bytes)]
        rows.append(row)
    foot = None
    if len(labels) > 1:
        trains = [found.train for found in labels if found.train]
        tests = [found.test for found in labels if found.test]
        foot = [
            "all",
            "",
            "",
            "",
            count(sum(store.labels for store in trains)),
            _size(sum(store.size_bytes for store in trains)),
            decimal(bytes_per_label(labels)),
            "",
            "",
            count(sum(store.labels for store in tests)),
            _size(sum(store.size_bytes for store in tests)),
        ]
    return table("Stores of soft labels, train and test", header, rows, foot=foot)
