"""The page of one label store: what `concentrate inspect --html` writes.

In: a store's summary as one HTML file, in the style of the report. Left out: the figures
themselves (pipeline.store). Of paths it shows none, so that it can be forwarded.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from pipeline.config import Project
from pipeline.durable_files import write_durably
from pipeline.report.document import document
from pipeline.report.labels import histograms, warnings
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
from pipeline.report.plots import histogram
from pipeline.report.samples import class_name, read_images
from pipeline.report.sections import folded, note, section, tile
from pipeline.store import StoreSummary
from storage_schemas.printable import counted

CLASS_BINS = 64


def write_store_page(
    summary: StoreSummary,
    path: Path,
    *,
    project: Project | None = None,
    written: datetime | None = None,
) -> None:
    """Write the page of a store.

    Args:
        summary: From `inspect_store`.
        path: Of the page, written whole or not at all.
        project: Whose source has the images of the rows that are shown; none are shown without.
        written: The date in the page; now when None.

    Raises:
        StoreError: If the page cannot be written.
    """
    keys = [row.key for row in summary.disagreements if row.key]
    images = read_images(project, keys) if project is not None else {}
    page = store_page(summary, images, written or datetime.now(UTC))
    write_durably(path, page.encode())


def store_page(summary: StoreSummary, images: Mapping[str, Markup], written: datetime) -> str:
    """Return the page; equal input gives equal bytes."""
    lead = (
        f"{count(summary.labels)} soft labels in {counted(summary.num_views, 'view')}, the top "
        f"{summary.k} of {count(summary.num_classes)} classes, {summary.split} split."
    )
    body = joined(
        [
            element(
                "header",
                element(
                    "p", "Soft labels ", element("span", f"{written:%Y-%m-%d}"), class_="kicker"
                ),
                element("h1", summary.teacher),
                element("p", lead, class_="lead"),
                class_="top",
            ),
            element(
                "main",
                _headline(summary),
                warnings(summary.problems),
                _coverage(summary),
                _distributions(summary),
                _disagreements(summary, images),
                _confusions(summary),
                _classes(summary),
                _bytes(summary),
                _facts(summary),
            ),
        ]
    )
    return document(f"{summary.teacher}: soft labels", body)


def _headline(summary: StoreSummary) -> Markup:
    bound = summary.ids_bound_bytes + summary.gaps_bound_bytes
    kept = summary.ids_bytes + summary.gaps_bytes
    agreement = 100 * summary.agreement if summary.agreement is not None else None
    state = "sound" if summary.is_healthy else counted(len(summary.problems), "problem")
    tiles = [
        tile("Labels", short(summary.labels), f"in {counted(summary.shards_committed, 'shard')}"),
        tile(
            "Agreement",
            percent(agreement),
            f"first rank is the hard label, of {short(summary.compared)}"
            if summary.compared
            else "no hard labels to compare with",
        ),
        tile("Mean entropy", decimal(summary.entropy_mean, 2), "nats a label"),
        tile("Mean tail", percent(100 * summary.tail_mean, 2), f"mass outside the top {summary.k}"),
        tile(
            "Bytes a label",
            decimal(summary.bytes_per_label),
            f"{kept / bound:.2f} times the entropy of its symbols" if bound else "",
        ),
        tile("Health", state, "records, files, every byte of ids"),
    ]
    return element("dl", *tiles, class_="tiles")


def _coverage(summary: StoreSummary) -> Markup:
    views = [f"View {view}" for view in range(summary.num_views)]
    if summary.verticals:
        rows = [
            [
                element("bdi", vertical.vertical),
                count(vertical.rows),
                percent(100 * vertical.agreed / vertical.compared)
                if vertical.compared
                else MISSING,
                *(
                    percent(100 * labels / vertical.rows) if vertical.rows else count(labels)
                    for labels in vertical.labels
                ),
            ]
            for vertical in summary.verticals
        ]
        said = "Share of the images in use that are labelled, by vertical of their hard label."
        if summary.retired_labels:
            said += f" {summary.retired_labels:,} labels are of images that are gone since."
        header = ["Vertical", "Images", "Agreement", *views]
        shown = table("Images labelled", header, rows)
        listed = folded(shown, len(rows), "verticals")
    else:
        said = f"By view alone: {summary.hard_labels_problem}."
        shares = [percent(100 * share) for share in summary.coverage]
        listed = table("Rows labelled", ["", *views], [["all rows", *shares]])
    return section("coverage", "Coverage and agreement", note(said), listed)


def _distributions(summary: StoreSummary) -> Markup:
    said = (
        f"From {count(summary.sampled)} labels at even distances, at temperature "
        f"{summary.temperature:g}. Entropy near 0 is a label that says no more than a hard one; "
        "the axis ends at the entropy of a uniform guess. The dashed line is the mean. Tail mass "
        "is on a logarithmic axis."
    )
    panels = [element("figure", drawing, class_="panel") for drawing in histograms(summary, "0")]
    listed = table(
        "Entropy, percentiles",
        ["Percentile", *(f"{at} %" for at, _ in summary.entropy_percentiles)],
        [["nats", *(decimal(value, 3) for _, value in summary.entropy_percentiles)]],
    )
    drawn = element("div", *panels, class_="panels")
    return section("distributions", "Entropy and tails", note(said), drawn, listed)


def _disagreements(summary: StoreSummary, images: Mapping[str, Markup]) -> Markup:
    if not summary.disagreements:
        return Markup("")
    cards = []
    for row in summary.disagreements:
        picture = images.get(row.key) or element("p", "image not shown", class_="absent")
        home = row.hard.partition("/")[0]
        name = row.key or "key unknown"
        cards.append(
            element(
                "article",
                element(
                    "header",
                    element("div", picture, class_="picture"),
                    element(
                        "div",
                        element("h3", class_name(row.hard)),
                        element(
                            "p",
                            "hard label, ",
                            percent(100 * row.hard_probability, 3),
                            class_="verdict",
                        ),
                        element("h3", class_name(row.first, home)),
                        element(
                            "p",
                            "teacher, ",
                            percent(100 * row.first_probability),
                            class_="verdict",
                        ),
                        element("p", element("bdi", name), f", row {row.row:,}", class_="key"),
                    ),
                ),
                class_="card",
            )
        )
    said = (
        "Images whose teacher is surest of another class than their hard label, among "
        f"{count(summary.sampled)} labels. Some of these hard labels are wrong; look at them."
    )
    shown = element("div", *cards, class_="cards")
    return section("disagreements", "Likely label errors", note(said), shown)


def _confusions(summary: StoreSummary) -> Markup:
    if not summary.confused:
        return Markup("")
    rows = [
        [class_name(pair.hard), class_name(pair.first), count(pair.labels)]
        for pair in summary.confused
    ]
    said = "Hard label and the other class that the teacher puts first, over all labels."
    if summary.confused_missing:
        said += f" Each pair may occur up to {summary.confused_missing:,} times more."
    header = ["Hard label", "First rank", "Labels"]
    listed = table("Most confused pairs", header, rows, texts=2)
    return section("confusions", "Confused pairs", note(said), listed)


def _classes(summary: StoreSummary) -> Markup:
    counts = np.sort(np.array(summary.class_counts))[::-1]
    edges = np.unique(np.linspace(0, len(counts), CLASS_BINS + 1).astype(int))
    means = np.add.reduceat(counts, edges[:-1]) / np.diff(edges)
    drawing = histogram(
        "classes",
        f"{summary.teacher}: labels by first rank",
        "classes, most frequent first",
        edges.tolist(),
        means.tolist(),
    )
    never = int((counts == 0).sum())
    said = "How often each class is the first rank, over all labels."
    if never:
        said += f" {never:,} of {len(counts):,} classes never are."
    rows = [[class_name(name), count(labels)] for name, labels in summary.top_classes]
    listed = table("Most frequent first ranks", ["Class", "Labels"], rows)
    panel = element("figure", drawing, class_="panel")
    return section("classes", "Classes", note(said), element("div", panel, class_="panels"), listed)


def _bytes(summary: StoreSummary) -> Markup:
    parts = [
        ("ids", summary.ids_bytes, summary.ids_bound_bytes),
        ("gaps", summary.gaps_bytes, summary.gaps_bound_bytes),
    ]
    parts.append(("together", sum(part[1] for part in parts), sum(part[2] for part in parts)))
    rows = [
        [name, decimal(kept, 2), decimal(bound, 2), decimal(kept / bound, 2) if bound else MISSING]
        for name, kept, bound in parts
    ]
    said = (
        "The entropy is zeroth-order, column by column: what a code that treats each symbol alone "
        "cannot go below. Of very many classes a sample shows too few, and the entropy is low."
    )
    header = ["Array", "Bytes a label", "Entropy", "Ratio"]
    return section("bytes", "Bytes", note(said), table("Bytes a label", header, rows))


def _facts(summary: StoreSummary) -> Markup:
    temperatures = ", ".join(f"{value:g}" for value in summary.temperatures)
    facts = [
        ("Store", element("code", summary.fingerprint)),
        ("Rows", count(summary.num_rows)),
        ("Size", short(summary.size_bytes, "B")),
        ("Code", f"{summary.activation}, {summary.precision}, temperatures {temperatures}"),
    ]
    lines = [element("div", element("dt", name), element("dd", value)) for name, value in facts]
    return section("facts", "Store", element("dl", *lines, class_="facts"))
