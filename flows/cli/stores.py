"""The verbs that look into label stores."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.cli.options import AsJson, show, user_errors
from pipeline.locations import location


def inspect(
    store: Annotated[
        str, typer.Argument(metavar="STORE", help="A label store: .zarr folder, or s3:// URL.")
    ],
    as_json: AsJson = False,
) -> None:
    """Show what a label store holds and how healthy it is, computed with Dask."""
    with user_errors():
        from flows import tables
        from pipeline.store import inspect_store

        summary = inspect_store(location(store))
        show(summary.to_dict(), as_json, tables.show_store)
        if not summary.is_healthy:
            raise typer.Exit(1)
