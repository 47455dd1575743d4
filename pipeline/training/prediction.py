"""A finished student on single images: the folder it left behind is all that is needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file

from pipeline.config import StudentConfig
from pipeline.data.decoding import decode_image
from pipeline.data.views import render
from pipeline.models.student import Student, build_student
from pipeline.training.evaluation import class_probabilities
from pipeline.workspace import read_record
from storage_schemas.errors import TrainingError, UnreadableImageError
from storage_schemas.label_space import LabelSpace
from storage_schemas.view_recipe import ViewRecipe


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
        student = build_student(config, space)
        student.load_state_dict(load_file(folder / "weights.safetensors"))
    except (KeyError, ValueError, ValidationError, OSError, RuntimeError, SafetensorError) as error:
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
        Per image: `image`, and `top` as [class, probability], most probable first.

    Raises:
        TrainingError: If there is no sound student.
        UnreadableImageError: If an image does not decode; names it.
    """
    student, config, space = load_student_folder(find_student(folder))
    recipe = ViewRecipe.evaluation_recipe()
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
        best = probabilities.topk(min(top, len(space)))
        found.append(
            {
                "image": str(path),
                "top": [
                    [space.classes[i], round(p, 4)]
                    for i, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)
                ],
            }
        )
    return found
