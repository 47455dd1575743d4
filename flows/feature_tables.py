"""What a store of block features holds, as a table for a person at a terminal."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.table import Table

from flows.tables import console, percent, plain, size


def show_features(summary: dict[str, Any]) -> None:
    """Show what a store of features holds and how healthy it is."""
    console.print(f"[bold]{plain(summary['path'])}[/bold]", soft_wrap=True)
    covered = ", ".join(f"{percent(100 * share)} %" for share in summary["coverage"])
    console.print(
        f"features of {plain(summary['teacher'])}, {plain(summary['split'])} rows: "
        f"{sum(summary['rows_per_view']):,} in {summary['num_views']} views ({covered} of "
        f"{summary['num_rows']:,}), {summary['shards_committed']:,} of "
        f"{summary['shards'] * summary['num_views']:,} shards, {size(summary['size_bytes'])}"
    )
    if summary["fit_rows"]:
        console.print(f"constants fitted on {summary['fit_rows']:,} rows")
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("array", "channels x height x width", "type", "fitted", "size", "bytes a row"):
        table.add_column(name, overflow="fold")
    for name in ("mean", "deviation"):
        table.add_column(name, justify="right", overflow="fold")
    for array in summary["arrays"]:
        spread = (array["mean"], array["deviation"])
        table.add_row(
            plain(array["name"]),
            " x ".join(str(axis) for axis in array["shape"]),
            array["dtype"],
            ", ".join(array["fitted"]),
            size(array["bytes"]),
            f"{array['bytes_per_row']:.0f}",
            *("" if value is None else f"{value:.3g}" for value in spread),
        )
    console.print(table)
    for problem in summary["problems"]:
        console.print(f"[red]{plain(problem)}[/red]", soft_wrap=True)
