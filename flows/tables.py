"""Results as tables for a person at a terminal."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

console = Console(highlight=False)


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def show_plan(plan: dict[str, Any]) -> None:
    """Show what would run."""
    images = ", ".join(f"{count:,} {split}" for split, count in plan["images"].items())
    console.print(f"images: {images}; {plan['quarantined']} quarantined")
    if not plan["work"]:
        console.print("everything is up to date")
        return
    table = Table("stage", "target", "why", "rows", "labels", "shards", "at most")
    for item in plan["work"]:
        table.add_row(
            item["stage"],
            escape(item["target"]),
            escape(item["reason"]),
            *(f"{item[name]:,}" if item[name] else "" for name in ("rows", "labels", "shards")),
            _size(item["bytes"]) if item["bytes"] else "",
        )
    console.print(table)
    console.print(
        f"label stores take at most {_size(plan['bytes'])} more before compression; "
        f"{_size(plan['free_bytes'])} are free"
    )


def show_records(records: list[dict[str, Any]]) -> None:
    """Show what a stage did, one record a row."""
    if not records:
        console.print("everything is up to date")
        return
    names = list(records[0])
    table = Table(*names)
    for record in records:
        table.add_row(*(escape(_cell(record[name])) for name in names))
    console.print(table)


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return f"{len(value)}" if value else "none"
    return f"{value:,}" if isinstance(value, int) else str(value)


def show_evaluation(evaluation: dict[str, Any]) -> None:
    """Show specialist, control and student side by side, by vertical, in percent.

    "inside" is among the classes of the image's own vertical, "of all" among all classes.
    """
    runs = {run["role"]: run for run in evaluation["runs"]}
    control, student = runs.get("control"), runs["student"]
    specialists = evaluation["specialists"]
    table = Table(
        title="top-1 accuracy on unseen images, %",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_footer=True,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("vertical", "all", no_wrap=True)
    for header, footer in (
        ("classes", f"{evaluation['classes']:,}"),
        ("images", f"{student['images']:,}"),
        ("specialist\ninside", _percent(_weighted(specialists))),
        ("control\ninside", _percent(control and control["top1_inside"])),
        ("student\ninside", _percent(student["top1_inside"])),
        ("control\nof all", _percent(control and control["top1"])),
        ("student\nof all", _percent(student["top1"])),
    ):
        table.add_column(header, footer, justify="right", no_wrap=True)
    for vertical in evaluation["verticals"]:
        here = student["verticals"][vertical]
        own = [s["top1"] for s in specialists.values() if s["verticals"] == [vertical]]
        there = control["verticals"][vertical] if control else {}
        table.add_row(
            escape(vertical),
            f"{here['classes']:,}",
            f"{here['images']:,}",
            _percent(max((value for value in own if value is not None), default=None)),
            _percent(there.get("top1_inside")),
            _percent(here["top1_inside"]),
            _percent(there.get("top1")),
            _percent(here["top1"]),
        )
    console.print(table)
    total = sum(item["cost"].get("parameters", 0) for item in specialists.values())
    own = student["cost"]["parameters"]
    console.print(
        f"parameters: {own:,} in the student, {total:,} in its {len(specialists)} specialists"
    )
    if control is not None:
        gain = student["top1"] - control["top1"]
        console.print(
            f"student against control (same network and steps, human labels): {gain:+.1f} points"
        )


def _weighted(specialists: dict[str, Any]) -> float | None:
    known = [s for s in specialists.values() if s["top1"] is not None]
    images = sum(s["images"] for s in known)
    return sum(s["top1"] * s["images"] for s in known) / images if images else None


def show_run(result: dict[str, Any]) -> None:
    """Show the outcome of the whole pipeline, or of the stages that were asked for."""
    stores = result["stores"]
    if result["evaluation"]:
        show_evaluation(result["evaluation"])
        console.print(
            f"labels: {stores['labels']:,} in {_size(stores['bytes'])}, "
            f"{stores['bytes_per_label']:.1f} bytes a label"
        )
    else:
        done = result["done"]
        console.print(
            f"trained: {done['specialists']} specialists, {done['runs']} students and controls; "
            f"labelled: {done['labels']:,}"
        )
    if result["quarantined"]:
        console.print(f"quarantined: {result['quarantined']} files that do not decode")
    if result["report"]:
        console.print(f"report: {result['report']}", soft_wrap=True)


def show_store(summary: dict[str, Any]) -> None:
    """Show what a store holds."""
    table = Table(show_header=False, title=escape(summary["path"]), title_justify="left")
    temperatures = ", ".join(f"{value:g}" for value in summary["temperatures"])
    coverage = ", ".join(f"{100 * value:.1f} %" for value in summary["coverage"])
    for name, value in (
        ("teacher", f"{summary['teacher']} ({summary['num_classes']:,} classes)"),
        ("labels", f"{summary['labels']:,} in {summary['num_views']} views, top-{summary['k']}"),
        ("rows labelled by view", coverage),
        ("code", f"{summary['activation']}, {summary['precision']}, temperatures {temperatures}"),
        ("size", f"{_size(summary['size_bytes'])}, {summary['bytes_per_label']:.1f} B a label"),
        ("shards", f"{summary['shards_committed']:,} committed"),
        ("mean entropy", f"{summary['entropy_mean']:.3f} nats"),
        ("mean tail mass", f"{summary['tail_mean']:.4f}"),
        ("most frequent", ", ".join(f"{n} ({c:,})" for n, c in summary["top_classes"][:5])),
        ("health", "sound" if not summary["problems"] else "\n".join(summary["problems"])),
    ):
        table.add_row(name, escape(value))
    console.print(table)


def show_predictions(found: dict[str, Any]) -> None:
    """Show the top classes of images."""
    for item in found["predictions"]:
        console.print(f"[bold]{escape(item['image'])}[/bold]")
        for name, probability in item["top"]:
            console.print(f"  {100 * probability:5.1f} %  {escape(name)}")


def show_started(started: dict[str, Any]) -> None:
    """Show what `init` wrote and what is left to the user."""
    console.print(f"wrote {started['config']}", soft_wrap=True)
    for line in started["found"]:
        console.print(f"  {escape(line)}")
    console.print("to fill in:")
    for line in started["to_do"]:
        console.print(f"  - {escape(line)}", soft_wrap=True)


def show_served(served: dict[str, Any]) -> None:
    """Show which deployments there are, and what starts them."""
    table = Table("deployment", "starts by itself", "at once")
    for item in served["deployments"]:
        starts = "\n".join(escape(text) for text in item["starts"])
        table.add_row(escape(item["deployment"]), starts or "-", str(item["limit"]))
    console.print(table)


def show_deployed(deployed: dict[str, Any]) -> None:
    """Show what was put onto a Prefect server, and how to run it."""
    show_served(deployed)
    for name in deployed["gpu_limits"]:
        console.print(f"one task at a time on {escape(name)}")
    console.print(f"run them with: prefect worker start --pool {escape(deployed['pool'])}")
