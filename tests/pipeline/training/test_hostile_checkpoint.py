"""Checkpoints that would run code when they are read, and student records of any content."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch

from pipeline.training.checkpoints import load_newest_checkpoint
from pipeline.training.prediction import load_student_folder
from storage_schemas.errors import TrainingError

SPACE = {"version": 1, "classes": ["all/a", "all/b"]}


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        """Return the call that unpickling makes."""
        return Path.write_text, (self.target, "ran")


@pytest.mark.parametrize("form", ["torch", "plain"])
def test_a_pickled_checkpoint_is_not_run(tmp_path: Path, form: str) -> None:
    """A run does not go on from it, says so, and the code in it has not run."""
    target, path = tmp_path / "ran", tmp_path / "step-000000001.pt"
    state = {"step": 1, "model": Evil(target)}
    if form == "torch":
        torch.save(state, path)
    else:
        path.write_bytes(pickle.dumps(state))
    with pytest.raises(TrainingError, match="remove the folder to train from the start"):
        load_newest_checkpoint(tmp_path, map_location=torch.device("cpu"))
    assert not target.exists()
    pickle.loads(pickle.dumps(Evil(target)))
    assert target.exists()


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"student": 5, "label_space": {}},
        {"student": {}, "label_space": [1]},
        {"student": {}, "label_space": {"version": 1, "classes": 7}},
        {"student": {"builder": "python:no.such:thing"}, "label_space": SPACE},
        {"student": {"builder": "torchvision:../x"}, "label_space": SPACE},
        {"student": {"builder_args": {"width": "wide"}}, "label_space": SPACE},
        {"student": {"seed": 1e400}, "label_space": SPACE},
    ],
)
def test_a_hostile_student_record_is_our_error(tmp_path: Path, record: dict[str, object]) -> None:
    """Whatever student.json holds, `predict` ends with a message."""
    (tmp_path / "student.json").write_text(json.dumps(record))
    (tmp_path / "weights.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(TrainingError, match="train it again"):
        load_student_folder(tmp_path)
