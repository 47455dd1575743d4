"""What the verbs share: options, the reading of the project file, errors as messages.

Results go to stdout (a table, or one JSON object with --json), progress to stderr. Exit codes:
0 done, 1 a check failed, 2 the input is wrong.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.environment import prepare_environment
from pipeline.durable_files import FORBIDDEN, FULL
from pipeline.locations import bucket_errors
from storage_schemas.errors import ConcentrateError
from storage_schemas.printable import printable

if TYPE_CHECKING:
    from pipeline.config import Project

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="The project file.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replace a setting; may be given again."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout.")]
Force = Annotated[
    bool, typer.Option("--force", help="Start even where the disk may not have room.")
]
Teacher = Annotated[str | None, typer.Option("--teacher", metavar="NAME", help="Only this one.")]


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn the errors that a user can act on into one message and an exit code."""
    from flows.progress import stop_display

    try:
        yield
    except ConcentrateError as error:
        stop_display()
        print(f"error: {printable(error)}", file=sys.stderr)
        raise typer.Exit(error.exit_code) from None
    except OSError as error:
        if error.errno not in (*FULL, *FORBIDDEN):
            raise
        stop_display()
        where = error.filename or "the disk"
        print(f"error: {where}: {error.strerror}; free or allow it and go on", file=sys.stderr)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        stop_display()
        print("stopped; the same command goes on from here", file=sys.stderr)
        raise typer.Exit(130) from None
    except bucket_errors() as error:
        stop_display()
        print(f"error: the bucket of the workspace failed: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    finally:
        stop_display()


def show(value: Any, as_json: bool, as_table: Callable[[Any], None]) -> None:
    """Print a result to stdout, as one JSON value or as a table for a person."""
    if as_json:
        print(_visible_json(value))
    else:
        as_table(value)


def _visible_json(value: Any) -> str:
    """Return one line of JSON in which whatever a terminal would not print is an escape."""
    text = json.dumps(value, ensure_ascii=False)
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


def prepare(config: Path, sets: list[str] | None) -> tuple[Project, str, list[str]]:
    """Check the project file before Prefect is started, and set Prefect's environment."""
    from pipeline.config import load_project

    overrides = list(sets or [])
    project = load_project(config, overrides)
    prepare_environment(project.workspace)
    return project, str(config.resolve()), overrides
