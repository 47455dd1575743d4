"""Results as tables for a person at a terminal."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from storage_schemas.printable import printable

console = Console(highlight=False)


def plain(value: object) -> str:
    """Return text that is shown as it is: neither markup of rich nor speech to the terminal."""
    return escape(printable(value))


def size(count: float) -> str:
    """Return a number of bytes for a person."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def percent(value: float | None) -> str:
    """Return a value that is in percent already; "-" for None."""
    return "-" if value is None else f"{value:.1f}"


def show_plan(plan: dict[str, Any]) -> None:
    """Show what would run."""
    images = ", ".join(f"{count:,} {split}" for split, count in plan["images"].items())
    console.print(f"images: {images}; {plan['quarantined']} quarantined")
    if plan["no_teacher"]:
        classes = list(plan["no_teacher"])
        more = f" and {len(classes) - 5:,} more" if len(classes) > 5 else ""
        console.print(
            f"left out: {sum(plan['no_teacher'].values()):,} training images that no teacher "
            f"labels, of {escape(', '.join(classes[:5]))}{more}"
        )
    if not plan["work"]:
        console.print("everything is up to date")
        return
    table = Table("stage", "target", "why", "rows", "labels", "shards", "at most")
    for item in plan["work"]:
        table.add_row(
            item["stage"],
            plain(item["target"]),
            plain(item["reason"]),
            *(f"{item[name]:,}" if item[name] else "" for name in ("rows", "labels", "shards")),
            size(item["bytes"]) if item["bytes"] else "",
        )
    console.print(table)
    free = "" if plan["free_bytes"] is None else f"; {size(plan['free_bytes'])} are free"
    console.print(f"label stores take at most {size(plan['bytes'])} more before compression{free}")
    features = sum(item["feature_bytes"] for item in plan["work"])
    if features:
        console.print(f"of this, {size(features)} are block features")
    if not plan["fits"]:
        console.print("not enough: `label` and `run` refuse to start, unless with --force")


def _folding(*columns: str) -> Table:
    """Return a table that breaks what does not fit, where rich would cut it off."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def show_records(records: list[dict[str, Any]]) -> None:
    """Show what a stage did, one record a row."""
    if not records:
        console.print("everything is up to date")
        return
    names = list(records[0])
    table = _folding(*(name.replace("_", " ") for name in names))
    for record in records:
        table.add_row(*(plain(_cell(record[name])) for name in names))
    console.print(table)


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return f"{len(value)}" if value else "none"
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
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
        ("specialist\ninside", percent(_weighted(specialists))),
        ("control\ninside", percent(control and control["top1_inside"])),
        ("student\ninside", percent(student["top1_inside"])),
        ("control\nof all", percent(control and control["top1"])),
        ("student\nof all", percent(student["top1"])),
    ):
        table.add_column(header, footer, justify="right", no_wrap=True)
    for vertical in evaluation["verticals"]:
        here = student["verticals"][vertical]
        own = [s["top1"] for s in specialists.values() if s["verticals"] == [vertical]]
        there = control["verticals"][vertical] if control else {}
        table.add_row(
            plain(vertical),
            f"{here['classes']:,}",
            f"{here['images']:,}",
            percent(max((value for value in own if value is not None), default=None)),
            percent(there.get("top1_inside")),
            percent(here["top1_inside"]),
            percent(there.get("top1")),
            percent(here["top1"]),
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
            f"labels: {stores['labels']:,} in {size(stores['bytes'])}, "
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
        console.print(f"report: {plain(result['report'])}", soft_wrap=True)


def show_garbage(items: list[dict[str, Any]]) -> None:
    """Show the stores of a workspace, and which of them are or would be removed."""
    if not items:
        console.print("there is no label store")
        return
    table = _folding("teacher", "store", "split", "labels", "size", "written", "", "why")
    table.columns[1].no_wrap = True  # a name to be copied
    for item in items:
        written = datetime.fromtimestamp(item["written"]).astimezone()
        table.add_row(
            plain(item["teacher"]),
            plain(item["store"].rpartition("/")[2].removesuffix(".zarr")),
            f"{item['split']} features" if item["kind"] == "features" else item["split"],
            f"{item['labels']:,}",
            size(item["bytes"]),
            written.strftime("%Y-%m-%d"),
            item["action"],
            plain(item["reason"]),
        )
    console.print(table)
    for action, said in (
        ("remove", "would be freed; --yes removes them"),
        ("removed", "were freed"),
    ):
        sizes = [item["bytes"] for item in items if item["action"] == action]
        if sizes:
            console.print(f"{len(sizes)} of {len(items)}: {size(sum(sizes))} {said}")


def show_predictions(found: dict[str, Any]) -> None:
    """Show the top classes of images."""
    for item in found["predictions"]:
        console.print(f"[bold]{plain(item['image'])}[/bold]")
        for name, probability in item["top"]:
            console.print(f"  {100 * probability:5.1f} %  {plain(name)}")


def show_started(started: dict[str, Any]) -> None:
    """Show what `init` wrote and what is left to the user."""
    console.print(f"wrote {plain(started['config'])}", soft_wrap=True)
    for line in started["found"]:
        console.print(f"  {plain(line)}")
    console.print("to fill in:")
    for line in started["to_do"]:
        console.print(f"  - {plain(line)}", soft_wrap=True)


def show_served(served: dict[str, Any]) -> None:
    """Show which deployments there are, and what starts them."""
    table = Table("deployment", "starts by itself", "at once")
    for item in served["deployments"]:
        starts = "\n".join(plain(text) for text in item["starts"])
        table.add_row(plain(item["deployment"]), starts or "-", str(item["limit"]))
    console.print(table)


def show_deployed(deployed: dict[str, Any]) -> None:
    """Show what was put onto a Prefect server, and how to run it."""
    show_served(deployed)
    for name in deployed["gpu_limits"]:
        console.print(f"one task at a time on {plain(name)}")
    console.print(f"run them with: prefect worker start --pool {plain(deployed['pool'])}")
