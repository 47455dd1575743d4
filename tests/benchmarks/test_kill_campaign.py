"""The quick form of `benchmarks/kill_campaign.py`: ten kills of a labelling process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.service
def test_killed_labelling_ends_like_an_undisturbed_one(tmp_path):
    """SIGKILL at ten random instants: every resumed workspace equals the undisturbed one."""
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "benchmarks" / "kill_campaign.py"),
            *("--kills", "10", "--seed", "1", "--output", str(tmp_path / "result.json")),
        ],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["problems"] == []
    assert result["kills"] == 10
    assert len(result["kills_by_phase"]) > 1
    assert result["labels_compared_each_time"] > 0
