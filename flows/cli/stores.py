"""The verbs that look into label stores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.options import AsJson, show, user_errors
from pipeline.config import load_project

Address = Annotated[
    str | None,
    typer.Option("--address", metavar="TCP", help="Scheduler of a Dask cluster to run on."),
]
Everything = Annotated[bool, typer.Option("--all", help="Decode every label, not about a million.")]


def inspect(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="A label store (.zarr folder).")],
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page to this file.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--project", metavar="CONFIG", help="Whose images the page shows."),
    ] = None,
    everything: Everything = False,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Show what a label store holds and how healthy it is, computed with Dask."""
    with user_errors():
        project = load_project(config, []) if config is not None else None
        from flows import store_tables
        from flows.progress import bar
        from pipeline.store import SAMPLED_LABELS, inspect_store

        with bar("shards read") as line:
            summary = inspect_store(
                store,
                sampled_labels=None if everything else SAMPLED_LABELS,
                address=address,
                progress=lambda done, total: line.set(done, total),
            )
        if html is not None:
            from pipeline.report import write_store_page

            write_store_page(summary, html, project=project)
        show(summary.to_dict(), as_json, store_tables.show_store)
        if not summary.is_healthy:
            raise typer.Exit(1)


def compare(
    a: Annotated[Path, typer.Argument(metavar="STORE", help="A label store (.zarr folder).")],
    b: Annotated[Path, typer.Argument(metavar="STORE", help="Another one, of the same images.")],
    temperature: Annotated[
        float | None,
        typer.Option("--temperature", help="Of the divergences; the first that both declare."),
    ] = None,
    everything: Everything = False,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Show where two label stores differ: two teachers, or two versions of one."""
    with user_errors():
        from flows import store_tables
        from flows.progress import bar
        from pipeline.store import SAMPLED_LABELS, compare_stores

        with bar("shards compared") as line:
            found = compare_stores(
                a,
                b,
                temperature=temperature,
                sampled_labels=None if everything else SAMPLED_LABELS,
                address=address,
                progress=lambda done, total: line.set(done, total),
            )
        show(found.to_dict(), as_json, store_tables.show_comparison)
        if found.problems:
            raise typer.Exit(1)
