"""The verbs that look into stores of labels and of features."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.options import AsJson, Config, Sets, Teacher, show, user_errors
from pipeline.locations import location
from storage_schemas.errors import ConfigError

Store = Annotated[
    str, typer.Argument(metavar="STORE", help="A label store: .zarr folder, or s3:// URL.")
]
Address = Annotated[
    str | None,
    typer.Option("--address", metavar="TCP", help="Scheduler of a Dask cluster to run on."),
]
Everything = Annotated[bool, typer.Option("--all", help="Decode every label, not about a million.")]


def inspect(
    store: Store,
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
    """Show what a store of labels or features holds and how healthy it is."""
    with user_errors():
        from flows import feature_tables, store_tables
        from flows.progress import bar
        from pipeline.config import load_project
        from pipeline.store import (
            SAMPLED_LABELS,
            holds_features,
            inspect_features,
            inspect_store,
        )

        project = load_project(config, []) if config is not None else None
        if holds_features(location(store)):
            if html is not None:
                raise ConfigError("--html", ["pages show labels, and this is a store of features"])
            with bar("shards read") as line:
                features = inspect_features(location(store), progress=line.set)
            show(features.to_dict(), as_json, feature_tables.show_features)
            if not features.is_healthy:
                raise typer.Exit(1)
            return
        with bar("shards read") as line:
            summary = inspect_store(
                location(store),
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
    a: Store,
    b: Annotated[str, typer.Argument(metavar="STORE", help="Another one, of the same images.")],
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
                location(a),
                location(b),
                temperature=temperature,
                sampled_labels=None if everything else SAMPLED_LABELS,
                address=address,
                progress=lambda done, total: line.set(done, total),
            )
        show(found.to_dict(), as_json, store_tables.show_comparison)
        if found.problems:
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
        from flows import tables
        from flows.progress import bar
        from pipeline.config import load_project
        from pipeline.store.garbage import find_garbage, remove_garbage
        from pipeline.teachers.stores import current_stores
        from pipeline.workspace import Workspace

        project = load_project(config, list(sets or []))
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
