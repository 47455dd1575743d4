"""The verbs that look into label stores."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.cli.options import AsJson, Config, Sets, Teacher, show, user_errors
from pipeline.config import load_project
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


def gc(
    config: Config,
    sets: Sets = None,
    teacher: Teacher = None,
    keep: Annotated[
        int,
        typer.Option("--keep", min=0, help="Newest unused stores to keep, by teacher and split."),
    ] = 1,
    yes: Annotated[bool, typer.Option("--yes", help="Remove them; without it, list only.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the label stores that nothing refers to, and remove them with --yes."""
    with user_errors():
        project = load_project(config, list(sets or []))
        from flows import tables
        from flows.progress import bar
        from pipeline.store.garbage import find_garbage, remove_garbage
        from pipeline.teachers.stores import current_stores
        from pipeline.workspace import Workspace

        workspace = Workspace(project.workspace)
        with bar("stores looked at") as line:
            found = find_garbage(
                workspace,
                current=current_stores(project),
                teachers=[config.name for config in project.teachers],
                keep=keep,
                only=teacher,
                report=line.set,
            )
        if yes:
            with bar("stores removed") as line:
                found = remove_garbage(workspace, found, report=line.set)
        show([item.to_dict() for item in found], as_json, tables.show_garbage)
