"""The verbs of the pipeline: one a stage, and all of them in order.

Flows are imported by the verb that runs them, so that --help is quick.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from flows.cli.options import AsJson, Config, Force, Sets, Teacher, prepare, show, user_errors
from flows.selection import Stage, select_stages
from storage_schemas.printable import printable

Depth = Annotated[
    Literal["quick", "full", "audit"],
    typer.Option(
        "--depth",
        help="quick: records and file structure. full: every byte. audit: run the teachers again.",
    ),
]
Sample = Annotated[
    int, typer.Option("--sample", min=1, help="Labels of each store that an audit compares.")
]

Again = Annotated[
    bool,
    typer.Option(
        "--again", help="Do it again although it is up to date: train, evaluate and report only."
    ),
]


def _prepare_teacher(
    config: Path, sets: list[str] | None, teacher: str | None
) -> tuple[str, list[str]]:
    """Prepare a flow that may be about one teacher only, which must be in the project file."""
    project, path, overrides = prepare(config, sets)
    if teacher is not None:
        project.teacher(teacher)
    return path, overrides


def run(
    config: Config,
    sets: Sets = None,
    only: Annotated[
        Stage | None, typer.Option("--only", help="This stage alone, where it has work to do.")
    ] = None,
    from_stage: Annotated[
        Stage | None, typer.Option("--from", help="This stage and all after it.")
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            "--teacher",
            metavar="NAME",
            help="Specialists, label and verify: only this teacher. Later stages take all.",
        ),
    ] = None,
    again: Again = False,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Run everything that is missing or stale, in order.

    Stages: specialists, label, verify, train, evaluate, report. What is done is read
    from records on the disk, so each may be run alone and as often as you like; one
    whose inputs are not there says which stage makes them.
    """
    with user_errors():
        select_stages(only, from_stage, teacher, again)
        path, overrides = _prepare_teacher(config, sets, teacher)
        from flows import tables
        from flows.concentrate import concentrate

        result = concentrate(path, overrides, only, from_stage, teacher, again, force)
        show(result, as_json, tables.show_run)


def plan(config: Config, sets: Sets = None, as_json: AsJson = False) -> None:
    """Show what would run, why, and how many bytes it takes; lists the images, runs nothing.

    The exit code is 1 where the disk may not have room for it.
    """
    with user_errors():
        from flows import tables
        from flows.progress import bar
        from pipeline.config import load_project
        from pipeline.plan import make_plan

        project = load_project(config, list(sets or []))
        with bar("images listed") as line:
            found, _ = make_plan(project, progress=lambda done, total: line.set(done, total))
        show(found.to_dict(), as_json, tables.show_plan)
        if not found.fits:
            raise typer.Exit(1)


def specialists(
    config: Config, sets: Sets = None, teacher: Teacher = None, as_json: AsJson = False
) -> None:
    """Train the teachers that come without weights, on their own images."""
    with user_errors():
        path, overrides = _prepare_teacher(config, sets, teacher)
        from flows import tables
        from flows.train_specialists import train_specialists

        show(train_specialists(path, overrides, teacher), as_json, tables.show_records)


def label(
    config: Config,
    sets: Sets = None,
    teacher: Teacher = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Run each teacher over what it has not labelled yet, and publish its stores."""
    with user_errors():
        path, overrides = _prepare_teacher(config, sets, teacher)
        from flows import tables
        from flows.label_teachers import label_teachers

        show(label_teachers(path, overrides, teacher, force), as_json, tables.show_records)


def verify(
    config: Config,
    sets: Sets = None,
    teacher: Teacher = None,
    depth: Depth = "quick",
    sample: Sample = 256,
    as_json: AsJson = False,
) -> None:
    """Check the label stores, or their teachers again; exit code 1 if a store is not sound."""
    with user_errors():
        path, overrides = _prepare_teacher(config, sets, teacher)
        from flows import tables
        from flows.verify_stores import verify_stores

        show(verify_stores(path, overrides, teacher, depth, sample), as_json, tables.show_records)


def train(config: Config, sets: Sets = None, again: Again = False, as_json: AsJson = False) -> None:
    """Train the student, and its control, from the published label stores."""
    with user_errors():
        _, path, overrides = prepare(config, sets)
        from flows import tables
        from flows.train_student import train_student

        show(train_student(path, overrides, again), as_json, tables.show_records)


def evaluate(
    config: Config, sets: Sets = None, again: Again = False, as_json: AsJson = False
) -> None:
    """Evaluate the student, its control and the specialists on unseen images."""
    with user_errors():
        _, path, overrides = prepare(config, sets)
        from flows import tables
        from flows.evaluate_student import evaluate_student

        show(evaluate_student(path, overrides, again), as_json, tables.show_evaluation)


def report(
    config: Config, sets: Sets = None, again: Again = False, as_json: AsJson = False
) -> None:
    """Write the HTML report of the newest evaluation."""
    with user_errors():
        _, path, overrides = prepare(config, sets)
        from flows.evaluate_student import report_student

        page = report_student(path, overrides, again)
        show({"report": page}, as_json, lambda found: print(printable(found["report"])))
