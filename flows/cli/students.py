"""The verbs at both ends: a new project, and a finished student."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.options import AsJson, show, user_errors
from pipeline.locations import location


def predict(
    student: Annotated[
        str, typer.Argument(metavar="STUDENT", help="Folder of a student, or s3:// URL.")
    ],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.")],
    top: Annotated[int, typer.Option("--top", min=1, help="How many classes.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Name the classes of images with a finished student."""
    with user_errors():
        from flows import tables
        from pipeline.training.prediction import predict_images

        found = predict_images(location(student), images, top=top)
        show({"predictions": found}, as_json, tables.show_predictions)


def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where the project file goes.")],
    images: Annotated[
        Path, typer.Option("--images", help="Class folders, or vertical/class folders.")
    ],
    as_json: AsJson = False,
) -> None:
    """Write a project file for a folder of images, check it, and say what to fill in."""
    with user_errors():
        from flows import tables
        from pipeline.starting import start_project

        show(start_project(folder, images), as_json, tables.show_started)
