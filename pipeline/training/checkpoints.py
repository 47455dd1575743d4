"""Checkpoints of a training run: written whole or not at all, the newest intact one is used.

A checkpoint is a `torch.save` file of tensors and plain values, read with `weights_only=True`.
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any, cast

import torch

from pipeline.durable_files import write_durably
from pipeline.locations import remove
from pipeline.models.weights import read_torch_file
from storage_schemas.errors import TrainingError

_PATTERN = re.compile(r"^step-(\d{9})\.pt$")


def _checkpoints(folder: Path) -> list[tuple[int, Path]]:
    found = [(m, path) for path in folder.glob("step-*.pt") if (m := _PATTERN.match(path.name))]
    return sorted((int(match[1]), path) for match, path in found)


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], *, keep: int) -> Path:
    """Write the state after `step` steps and remove all but the newest `keep` checkpoints.

    Raises:
        StoreError: If it cannot be written; the older checkpoints stay.
    """
    path = folder / f"step-{step:09d}.pt"
    # Through memory: where a disk is full, torch names a position in its file and no reason.
    content = io.BytesIO()
    torch.save(state, content)
    write_durably(path, content.getvalue())
    for _, old in _checkpoints(folder)[:-keep]:
        remove(old)
    return path


def load_newest_checkpoint(folder: Path, *, map_location: torch.device) -> dict[str, Any] | None:
    """Return the newest checkpoint that can be read, or None when there is none.

    Raises:
        TrainingError: If checkpoints exist and none of them can be read.
    """
    found = _checkpoints(folder)
    failures = []
    for _, path in reversed(found):
        try:
            state = cast(dict[str, Any], read_torch_file(path, map_location))
        except Exception as error:  # a damaged file raises many types
            failures.append(f"{path}: {error}")
        else:
            return state
    if found:
        raise TrainingError(
            "no checkpoint can be read; remove the folder to train from the start:\n  "
            + "\n  ".join(failures)
        )
    return None
