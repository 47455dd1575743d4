"""A checkpoint that would run code when it is read."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from pipeline.training.checkpoints import load_newest_checkpoint
from storage_schemas.errors import TrainingError


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
