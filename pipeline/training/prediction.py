"""Running a finished student: over the test rows of its project, and on single image files.

In: loading the weights, probabilities as the objective means them. Left out: metrics
(evaluation.py). For image files the folder that a run left behind is all that is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors import SafetensorError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipeline.config import ObjectiveConfig, Project, StudentConfig
from pipeline.data import open_source
from pipeline.data.decoding import decode_image
from pipeline.data.loader import EndWithOwner
from pipeline.data.view_reader import ViewReader
from pipeline.data.views import render
from pipeline.models.student import Student, build_student
from pipeline.models.weights import read_safetensors
from pipeline.training.fit import pick_device
from pipeline.training.runs import StudentRun
from pipeline.workspace import read_record
from storage_schemas.errors import (
    ConcentrateError,
    DataError,
    TrainingError,
    UnreadableImageError,
)
from storage_schemas.hierarchy import leaf_classes
from storage_schemas.label_space import LabelSpace
from storage_schemas.manifest import TEST, Manifest
from storage_schemas.view_recipe import ViewRecipe

Rows = npt.NDArray[np.int64]
_SURE = 0.5


class _TestImages(Dataset[Tensor]):
    def __init__(self, reader: ViewReader) -> None:
        self.reader = reader

    def __getitem__(self, rows: Rows) -> Tensor:
        return self.reader.read(rows, np.zeros_like(rows))


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """A student's answers on the test rows.

    Attributes:
        rows: (N,) manifest rows.
        labels: (N,) global class ids.
        logits: (N, C) float32.
        probabilities: (N, C) float32, as the student's objective means its logits.
    """

    rows: Rows
    labels: Tensor
    logits: Tensor
    probabilities: Tensor


def class_probabilities(logits: Tensor, objective: ObjectiveConfig) -> Tensor:
    """Return probabilities of (..., C) logits: independent ones where the loss is sigmoid."""
    if objective.activation == "sigmoid":
        return logits.sigmoid()
    return logits.softmax(dim=-1)


def load_student(run: StudentRun, space: LabelSpace) -> Student:
    """Build a finished run's network with its weights, in eval mode on the CPU."""
    student = build_student(run.config, space, (run.record or {}).get("structure"))
    student.load_state_dict(read_safetensors(run.weights))
    return student.eval()


def predict_rows(
    project: Project,
    run: StudentRun,
    space: LabelSpace,
    manifest: Manifest,
    *,
    report: Callable[[int, int], None] | None = None,
) -> Predictions:
    """Run a finished student over all labelled test rows, in the evaluation view.

    Raises:
        DataError: If there are none.
    """
    rows = manifest.rows(TEST)
    rows = rows[manifest.labels[rows] >= 0]
    if len(rows) == 0:
        raise DataError("there is no labelled test image; set data.test_fraction or data.test_root")
    device = pick_device(project.runtime.device)
    student = load_student(run, space).to(device)
    reader = ViewReader(
        open_source(project.data, project.workspace),
        manifest.keys,
        ViewRecipe.evaluation_recipe(),
        run.config.input,
    )
    batches = np.array_split(rows, -(-len(rows) // run.config.batch_size))
    loader = DataLoader(
        _TestImages(reader),
        batch_size=None,
        sampler=batches,
        num_workers=project.runtime.num_workers,
        multiprocessing_context="forkserver" if project.runtime.num_workers else None,
        worker_init_fn=EndWithOwner() if project.runtime.num_workers else None,
    )
    logits = []
    with torch.inference_mode():
        for images in loader:
            logits.append(student(images.to(device)).logits.float().cpu())
            if report is not None:
                report(len(logits), len(batches))
    whole = torch.cat(logits)
    return Predictions(
        rows=rows,
        labels=torch.from_numpy(manifest.labels[rows].astype(np.int64)),
        logits=whole,
        probabilities=class_probabilities(whole, run.config.objective),
    )


def find_student(path: Path) -> Path:
    """Return the folder of a finished student: the path itself, or the newest below it.

    Raises:
        TrainingError: If there is none.
    """
    if (path / "student.json").is_file():
        return path
    found = sorted(path.glob("*/student.json"), key=lambda file: file.stat().st_mtime)
    if not found:
        raise TrainingError(
            f"{path} must be the folder of a finished student (with student.json), or the folder "
            "above; `concentrate train` makes one"
        )
    return found[-1].parent


def load_student_folder(folder: Path) -> tuple[Student, StudentConfig, LabelSpace]:
    """Load a student with its settings and label space.

    Raises:
        TrainingError: If the folder is damaged.
    """
    record = read_record(folder / "student.json") or {}
    try:
        config = StudentConfig.model_validate(record["student"])
        space = LabelSpace.from_dict(record["label_space"])
        student = build_student(config, space, record.get("structure"))
        student.load_state_dict(read_safetensors(folder / "weights.safetensors"))
    except (
        *(KeyError, TypeError, ValueError, ValidationError, OSError, RuntimeError),
        *(SafetensorError, ConcentrateError),
    ) as error:
        raise TrainingError(f"{folder} is not a sound student: {error}; train it again") from error
    return student.eval(), config, space


def _read(path: Path) -> Image.Image:
    try:
        return decode_image(path.read_bytes(), str(path))
    except OSError as error:
        raise UnreadableImageError(f"{path} cannot be read: {error}") from error


def predict_images(folder: Path, images: Sequence[Path], *, top: int = 5) -> list[dict[str, Any]]:
    """Return the top classes of image files.

    Args:
        folder: Of a finished student, or the folder above.
        images: Image files.
        top: How many classes.

    Returns:
        Per image: `image`, and `top` as [class, probability], most probable first. Where classes
        have is-a parents, `top` is of leaves, and `above` has the inner classes of probability 1/2
        or more: a sigmoid student may be sure of the letter and not of its accent.

    Raises:
        TrainingError: If there is no sound student.
        UnreadableImageError: If an image does not decode; names it.
    """
    student, config, space = load_student_folder(find_student(folder))
    recipe = ViewRecipe.evaluation_recipe()
    leaves = leaf_classes(space)
    found = []
    for path in images:
        zero = np.zeros(1, np.int64)
        pixels = render(
            [_read(path)],
            recipe.parameters(zero, zero),
            size=config.input.size,
            channels=config.input.channels,
        )
        mean = torch.tensor(config.input.mean).view(-1, 1, 1)
        std = torch.tensor(config.input.std).view(-1, 1, 1)
        with torch.inference_mode():
            logits = student((pixels - mean) / std).logits[0].float()
        probabilities = class_probabilities(logits, config.objective)
        answer: dict[str, Any] = {
            "image": str(path),
            "top": _most_probable(probabilities, leaves, space)[:top],
        }
        if not leaves.all():
            inner = _most_probable(probabilities, ~leaves, space)
            answer["above"] = [[name, p] for name, p in inner if p >= _SURE]
        found.append(answer)
    return found


def _most_probable(
    probabilities: Tensor, among: npt.NDArray[np.bool_], space: LabelSpace
) -> list[list[Any]]:
    """Return [class, probability] of some of the classes, most probable first."""
    ids = torch.from_numpy(np.flatnonzero(among))
    order = ids[probabilities[ids].argsort(descending=True, stable=True)]
    return [[space.classes[i], round(float(probabilities[i]), 4)] for i in order.tolist()]
