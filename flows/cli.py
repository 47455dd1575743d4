"""The `concentrate` command: one verb per stage.

Results go to stdout (a table, or one JSON object with --json), progress to stderr. Exit codes:
0 done, 1 a check failed, 2 the input is wrong. torch, zarr and Prefect are imported by the verbs
that need them, so that --help is quick.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal

import typer

from flows.environment import prepare_environment
from pipeline.config import Project, load_project
from storage_schemas.errors import ConcentrateError

app = typer.Typer(
    name="concentrate",
    help="Many specialist classifiers, one student: label once, train from the store.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="The project file.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replace a setting; may be given again."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout.")]
Teacher = Annotated[str | None, typer.Option("--teacher", metavar="NAME", help="Only this one.")]
Depth = Annotated[
    Literal["quick", "full"],
    typer.Option("--depth", help="quick: records and sizes. full: every byte."),
]


def _example(line: str) -> str:
    return f"[bold]Example:[/bold]  {line}"


@contextmanager
def _user_errors() -> Iterator[None]:
    from flows.progress import stop_display

    try:
        yield
    except ConcentrateError as error:
        stop_display()
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        stop_display()
        print("stopped; the same command goes on from here", file=sys.stderr)
        raise typer.Exit(130) from None
    finally:
        stop_display()


def _print(value: Any, as_json: bool, show: Callable[[Any], None]) -> None:
    if as_json:
        print(json.dumps(value, ensure_ascii=False))
    else:
        show(value)


def _prepare(config: Path, sets: list[str] | None) -> tuple[Project, str, list[str]]:
    """Check the project file before Prefect is started, and set Prefect's environment."""
    overrides = list(sets or [])
    project = load_project(config, overrides)
    prepare_environment(project.workspace)
    return project, str(config.resolve()), overrides


@app.command(epilog=_example("concentrate run project.yaml --set student.epochs=20"))
def run(config: Config, sets: Sets = None, as_json: AsJson = False) -> None:
    """Run everything that is missing or stale, in order."""
    with _user_errors():
        _, path, overrides = _prepare(config, sets)
        from flows import tables
        from flows.concentrate import concentrate

        _print(concentrate(path, overrides), as_json, tables.show_run)


@app.command(epilog=_example("concentrate plan project.yaml"))
def plan(config: Config, sets: Sets = None, as_json: AsJson = False) -> None:
    """Show what would run, why, and how many bytes it takes; lists the images, runs nothing."""
    with _user_errors():
        project = load_project(config, list(sets or []))
        from flows import tables
        from flows.progress import bar
        from pipeline.plan import make_plan

        with bar("images listed") as line:
            found, _ = make_plan(project, progress=lambda done, total: line.set(done, total))
        _print(found.to_dict(), as_json, tables.show_plan)


@app.command(epilog=_example("concentrate specialists project.yaml"))
def specialists(
    config: Config, sets: Sets = None, teacher: Teacher = None, as_json: AsJson = False
) -> None:
    """Train the teachers that come without weights, on their own images."""
    with _user_errors():
        _, path, overrides = _prepare(config, sets)
        from flows import tables
        from flows.train_specialists import train_specialists

        _print(train_specialists(path, overrides, teacher), as_json, tables.show_records)


@app.command(epilog=_example("concentrate label project.yaml --teacher letters"))
def label(
    config: Config, sets: Sets = None, teacher: Teacher = None, as_json: AsJson = False
) -> None:
    """Run each teacher over what it has not labelled yet, and publish its stores."""
    with _user_errors():
        _, path, overrides = _prepare(config, sets)
        from flows import tables
        from flows.label_teachers import label_teachers

        _print(label_teachers(path, overrides, teacher), as_json, tables.show_records)


@app.command(epilog=_example("concentrate verify project.yaml --depth full"))
def verify(
    config: Config,
    sets: Sets = None,
    teacher: Teacher = None,
    depth: Depth = "quick",
    as_json: AsJson = False,
) -> None:
    """Check the label stores against their commit records; exit code 1 if one is damaged."""
    with _user_errors():
        _, path, overrides = _prepare(config, sets)
        from flows import tables
        from flows.verify_stores import verify_stores

        _print(verify_stores(path, overrides, teacher, depth), as_json, tables.show_records)


@app.command(epilog=_example("concentrate train project.yaml"))
def train(config: Config, sets: Sets = None, as_json: AsJson = False) -> None:
    """Train the student, and its control, from the published label stores."""
    with _user_errors():
        _, path, overrides = _prepare(config, sets)
        from flows import tables
        from flows.train_student import train_student

        _print(train_student(path, overrides), as_json, tables.show_records)


@app.command(epilog=_example("concentrate evaluate project.yaml --json"))
def evaluate(config: Config, sets: Sets = None, as_json: AsJson = False) -> None:
    """Evaluate the student, its control and the specialists on unseen images."""
    with _user_errors():
        _, path, overrides = _prepare(config, sets)
        from flows import tables
        from flows.evaluate_student import evaluate_student

        _print(evaluate_student(path, overrides), as_json, tables.show_evaluation)


@app.command(epilog=_example("concentrate report project.yaml"))
def report(config: Config, sets: Sets = None, as_json: AsJson = False) -> None:
    """Write the HTML report of the newest evaluation."""
    with _user_errors():
        _, path, overrides = _prepare(config, sets)
        from flows.evaluate_student import report_student

        _print({"report": report_student(path, overrides)}, as_json, lambda v: print(v["report"]))


@app.command(epilog=_example("concentrate inspect STORE"))
def inspect(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="A label store (.zarr folder).")],
    as_json: AsJson = False,
) -> None:
    """Show what a label store holds and how healthy it is, computed with Dask."""
    with _user_errors():
        from flows import tables
        from pipeline.store import inspect_store

        summary = inspect_store(store)
        _print(summary.to_dict(), as_json, tables.show_store)
        if not summary.is_healthy:
            raise typer.Exit(1)


@app.command(epilog=_example("concentrate predict STUDENT IMAGE"))
def predict(
    student: Annotated[Path, typer.Argument(metavar="STUDENT", help="Folder of a student.")],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.")],
    top: Annotated[int, typer.Option("--top", min=1, help="How many classes.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Name the classes of images with a finished student."""
    with _user_errors():
        from flows import tables
        from pipeline.training.prediction import predict_images

        found = predict_images(student, images, top=top)
        _print({"predictions": found}, as_json, tables.show_predictions)


@app.command(epilog=_example("concentrate init pets --images IMAGES"))
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where the project file goes.")],
    images: Annotated[
        Path, typer.Option("--images", help="Class folders, or vertical/class folders.")
    ],
    as_json: AsJson = False,
) -> None:
    """Write a project file for a folder of images, check it, and say what to fill in."""
    with _user_errors():
        from flows import tables
        from pipeline.starting import start_project

        _print(start_project(folder, images), as_json, tables.show_started)


def _stop_at_once(number: int, frame: FrameType | None) -> None:
    """End this process and its children where they stand: all work is written to survive that.

    Prefect would report the interruption to its own server first, which has been interrupted too,
    and wait for minutes.
    """
    import psutil

    for child in psutil.Process().children(recursive=True):
        child.terminate()
    print("\nstopped; the same command goes on from here", file=sys.stderr, flush=True)
    os._exit(130)


def main() -> None:
    """Run the command line."""
    if "PREFECT_API_URL" not in os.environ:
        signal.signal(signal.SIGINT, _stop_at_once)
    app()


if __name__ == "__main__":
    main()
