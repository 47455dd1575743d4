"""The quick form of `benchmarks/corruption_campaign.py`: 70 of its damages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_damage_is_found_never_read_and_repaired(tmp_path):
    """Flips, cuts, losses, exchanges: all found and named, none read, every fifth repaired."""
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "benchmarks" / "corruption_campaign.py"),
            *("--flips", "100", "--sample", "70", "--seed", "1", "--repair-every", "5"),
            *("--output", str(tmp_path / "result.json")),
        ],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["failures"] == []
    assert result["damages"] == 70
    assert result["repaired"] == 14
    assert len(result["by_kind"]) > 8
