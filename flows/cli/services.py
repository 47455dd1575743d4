"""The verbs that put the pipeline onto a schedule."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.options import AsJson, Config, Sets, prepare, show, user_errors

if TYPE_CHECKING:
    from flows.deployments import StageDeployment

Nightly = Annotated[
    str | None,
    typer.Option("--nightly", metavar="CRON", help="When to label what is new [0 2 * * *]."),
]
Weekly = Annotated[
    str | None,
    typer.Option("--weekly", metavar="CRON", help="When to check every byte [0 4 * * 0]."),
]
Zone = Annotated[
    str | None, typer.Option("--timezone", metavar="NAME", help="Of both, as Europe/Berlin [UTC].")
]


def deploy(
    config: Config,
    sets: Sets = None,
    pool: Annotated[
        str, typer.Option("--pool", metavar="NAME", help="Work pool; made when there is none.")
    ] = "concentrate",
    nightly: Nightly = None,
    weekly: Weekly = None,
    timezone: Zone = None,
    as_yaml: Annotated[
        bool, typer.Option("--yaml", help="Print a prefect.yaml instead; needs no server.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Put every stage onto a Prefect server, with schedules, for its workers to run.

    Every night new images are labelled; when all teachers have published, the student
    is trained, evaluated and reported. Every week each byte of the stores is checked.
    """
    with user_errors():
        if as_yaml:
            import yaml

            from flows.deployments import prefect_yaml

            found = _deployments(config, str(config), sets, nightly, weekly, timezone)
            typer.echo(yaml.safe_dump(prefect_yaml(found, pool), sort_keys=False), nl=False)
            return
        _, path, _ = prepare(config, sets)
        found = _deployments(config, path, sets, nightly, weekly, timezone)
        from flows import tables
        from flows.deploying import deploy

        show(deploy(found, pool), as_json, tables.show_deployed)


def serve(
    config: Config,
    sets: Sets = None,
    nightly: Nightly = None,
    weekly: Weekly = None,
    timezone: Zone = None,
    as_json: AsJson = False,
) -> None:
    """Run the same schedules in this process, without a work pool, until Ctrl-C."""
    with user_errors():
        os.environ.setdefault("PREFECT_LOGGING_LEVEL", "INFO")
        os.environ.setdefault("PREFECT_LOGGING_TO_API_ENABLED", "true")
        _, path, _ = prepare(config, sets)
        from flows import tables
        from flows.deploying import described, serve_forever

        found = _deployments(config, path, sets, nightly, weekly, timezone)
        show({"deployments": described(found)}, as_json, tables.show_served)
        serve_forever(found)


def _deployments(
    config: Path,
    path: str,
    sets: list[str] | None,
    nightly: str | None,
    weekly: str | None,
    timezone: str | None,
) -> tuple[StageDeployment, ...]:
    from flows.deployments import Times, stage_deployments
    from pipeline.config import load_project

    given = {"label": nightly, "verify": weekly, "timezone": timezone}
    times = Times(**{name: value for name, value in given.items() if value is not None})
    overrides = list(sets or [])
    return stage_deployments(load_project(config, overrides), path, overrides, times)
