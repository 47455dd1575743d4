"""What a label store holds, as tables for a person at a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table

from flows.tables import console, percent, plain, size
from storage_schemas.printable import counted
from storage_schemas.selection import described

BLOCKS = " \u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
SHOWN = 10
VIEWS_SHOWN = 8


def _table(title: str, *columns: str, texts: int = 1) -> Table:
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )
    for at, column in enumerate(columns):
        table.add_column(column, justify="left" if at < texts else "right", overflow="fold")
    return table


def _bars(counts: Sequence[int]) -> str:
    """Return a histogram in one line; what is not empty is seen."""
    most = max(counts, default=0)
    return "".join(BLOCKS[-(-8 * value // most) if most else 0] for value in counts)


def show_store(summary: dict[str, Any]) -> None:
    """Show what a store holds and how healthy it is."""
    console.print(f"[bold]{plain(summary['path'])}[/bold]", soft_wrap=True)
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    temperatures = ", ".join(f"{value:g}" for value in summary["temperatures"])
    for name, value in (
        ("teacher", f"{summary['teacher']}, {summary['num_classes']:,} classes"),
        (
            "labels",
            f"{summary['labels']:,} in {counted(summary['num_views'], 'view')}, "
            f"{described(summary['selection'], summary['k'], summary['top_p'])}, "
            f"{summary['split']} split",
        ),
        ("code", f"{summary['activation']}, {summary['precision']}, temperatures {temperatures}"),
        ("size", f"{size(summary['size_bytes'])}, {counted(summary['shards_committed'], 'shard')}"),
        ("bytes a label", _bytes(summary)),
        ("agreement", _agreement(summary)),
        ("entropy", _entropy(summary)),
        ("tail mass", _tail(summary)),
        ("sample", f"{summary['sampled']:,} labels for entropy, tail mass and the rows below"),
        ("most frequent", ", ".join(f"{n} ({c:,})" for n, c in summary["top_classes"][:5])),
        ("health", "sound" if not summary["problems"] else "\n".join(summary["problems"])),
    ):
        table.add_row(name, plain(value))
    console.print(table)
    _show_coverage(summary)
    if summary["confused"]:
        confused = _table("most confused pairs", "hard label", "first rank", "labels", texts=2)
        for pair in summary["confused"][:SHOWN]:
            confused.add_row(plain(pair["hard"]), plain(pair["first"]), f"{pair['labels']:,}")
        console.print(confused)
    if summary["disagreements"]:
        _show_disagreements(summary["disagreements"][:SHOWN])


def _bytes(summary: dict[str, Any]) -> str:
    bound = summary["ids_bound_bytes"] + summary["gaps_bound_bytes"]
    if not bound:
        return f"{summary['bytes_per_label']:.1f}"
    kept = summary["ids_bytes"] + summary["gaps_bytes"]
    return (
        f"{summary['bytes_per_label']:.1f}; ids {summary['ids_bytes']:.2f} and gaps "
        f"{summary['gaps_bytes']:.2f}, {kept / bound:.2f} times the entropy of their symbols "
        f"({summary['ids_bound_bytes']:.2f} + {summary['gaps_bound_bytes']:.2f})"
    )


def _agreement(summary: dict[str, Any]) -> str:
    if summary["agreement"] is None:
        return summary["hard_labels_problem"] or "no label to compare with a hard label"
    return (
        f"{100 * summary['agreement']:.1f} % of {summary['compared']:,} labels have the hard "
        "label first"
    )


def _entropy(summary: dict[str, Any]) -> str:
    marks = ", ".join(f"{at} %: {value:.2f}" for at, value in summary["entropy_percentiles"])
    return (
        f"mean {summary['entropy_mean']:.3f} nats; {marks}\n"
        f"0 |{_bars(summary['entropy_counts'])}| {summary['entropy_edges'][-1]:.1f}"
    )


def _tail(summary: dict[str, Any]) -> str:
    if not summary["tail_counts"]:
        return "none"
    low, high = summary["tail_edges"][0], summary["tail_edges"][-1]
    return (
        f"mean {summary['tail_mean']:.4f}\n"
        f"1e{low:.0f} |{_bars(summary['tail_counts'])}| {10**high:g}, logarithmic"
    )


def _show_coverage(summary: dict[str, Any]) -> None:
    names = [f"view {view}" for view in range(min(summary["num_views"], VIEWS_SHOWN))]
    if not summary["verticals"]:
        table = _table("rows labelled, %", *names, texts=0)
        table.add_row(*(percent(100 * share) for share in summary["coverage"][:VIEWS_SHOWN]))
        console.print(table)
        return
    table = _table("images labelled, %", "vertical", "images", "agreement", *names)
    for vertical in summary["verticals"]:
        rows, compared = vertical["rows"], vertical["compared"]
        table.add_row(
            plain(vertical["vertical"]),
            f"{rows:,}",
            percent(100 * vertical["agreed"] / compared if compared else None),
            *(
                percent(100 * labels / rows if rows else None)
                for labels in vertical["labels"][:VIEWS_SHOWN]
            ),
        )
    console.print(table)
    if summary["num_views"] > VIEWS_SHOWN:
        console.print(f"and {summary['num_views'] - VIEWS_SHOWN} more views; --json has all")
    if summary["retired_labels"]:
        console.print(f"{summary['retired_labels']:,} labels are of images that are gone since")


def _show_disagreements(rows: Sequence[dict[str, Any]]) -> None:
    table = _table("likely label errors", "image", "hard label", "%", "teacher says", "%", texts=2)
    table.columns[3].justify = "left"
    for row in rows:
        table.add_row(
            plain(row["key"] or f"row {row['row']}"),
            plain(row["hard"]),
            f"{100 * row['hard_probability']:.2g}",
            plain(row["first"]),
            percent(100 * row["first_probability"]),
        )
    console.print(table)


def show_comparison(found: dict[str, Any]) -> None:
    """Show where two stores differ."""
    for name, path in zip("ab", found["paths"], strict=True):
        console.print(f"{name}: [bold]{plain(path)}[/bold]", soft_wrap=True)
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    shared, only_a, only_b = found["classes"]
    agreement = (
        f"{100 * found['agreement']:.2f} % of {found['labels']:,} labels that both have put the "
        "same class first"
        if found["agreement"] is not None
        else "no label that both have"
    )
    divergence = (
        f"a to b {found['kl_ab']:.4f}, b to a {found['kl_ba']:.4f} nats, mean of "
        f"{found['sampled']:,} labels at temperature {found['temperature']:g}, over the classes "
        "that both have"
        if found["sampled"]
        else found["kl_problem"] or "no label that both have"
    )
    by_view = ", ".join(
        percent(100 * view["agreed"] / view["both"] if view["both"] else None)
        for view in found["views"][:VIEWS_SHOWN]
    )
    for name, value in (
        ("teachers", f"{found['teachers'][0]}, {found['teachers'][1]}"),
        ("classes", f"{shared:,} in both, {only_a:,} only in a, {only_b:,} only in b"),
        ("agreement", agreement),
        ("by view, %", by_view),
        ("KL", divergence),
        ("health", "\n".join(found["problems"]) or "no damage met"),
    ):
        table.add_row(name, plain(value))
    console.print(table)
    if found["differences"]:
        fields = _table("fields that differ", "field", "a", "b", texts=3)
        for difference in found["differences"]:
            fields.add_row(*(plain(part) for part in difference))
        console.print(fields)
    _show_differing(found)


def _show_differing(found: dict[str, Any]) -> None:
    lowest = [row for row in found["lowest"] if row["both"] < row["a"] + row["b"] - row["both"]]
    if lowest:
        classes = _table("classes of lowest agreement", "class", "a first", "b first", "both")
        for row in lowest[:SHOWN]:
            counts = (f"{row[name]:,}" for name in ("a", "b", "both"))
            classes.add_row(plain(row["name"]), *counts)
        console.print(classes)
    if found["pairs"]:
        pairs = _table("most frequent differences", "a first", "b first", "labels", texts=2)
        for pair in found["pairs"][:SHOWN]:
            pairs.add_row(plain(pair["a"]), plain(pair["b"]), f"{pair['labels']:,}")
        console.print(pairs)
    rows = [row for row in found["rows"] if row["kl_ab"] + row["kl_ba"] > 0]
    if rows:
        table = _table(
            "images that differ most", "image", "a first", "b first", "KL a to b", "b to a", texts=3
        )
        for row in rows[:SHOWN]:
            table.add_row(
                plain(row["key"] or f"row {row['row']}"),
                f"{plain(row['a'])} {percent(100 * row['a_probability'])} %",
                f"{plain(row['b'])} {percent(100 * row['b_probability'])} %",
                f"{row['kl_ab']:.3f}",
                f"{row['kl_ba']:.3f}",
            )
        console.print(table)
