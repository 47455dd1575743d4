"""The quick form of `benchmarks/billion_rows.py`: what is absent costs nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def part(*words: object) -> dict[str, Any]:
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "benchmarks" / "billion_rows.py")),
            *("--part", json.dumps([str(word) for word in words])),
        ],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_store_of_a_billion_rows_costs_what_was_written_in_it(tmp_path):
    """Opened, planned, resumed, checked and streamed in seconds and a few hundred megabytes.

    A pass over all 15,260 places by zarr would take 8 s on an idle machine, and one array with a
    number for each row 8 GB. The bounds leave room for a loaded machine.
    """
    store = tmp_path / "store.zarr"
    part("create", store, 10**9, 4, 1)
    found = part("resume", store, 1, 20)
    assert found["shards"] == {
        "of_the_store": 4 * 3815,
        "of_the_teacher": 4 * 39,
        "missing": 4 * 38,
        "missing_after_one_more": 4 * 38 - 1,
    }
    assert found["problems"] == []
    assert found["labels"] > 262_144
    steps = found["steps"]
    for name in ("open", "plan", "reopen and plan", "verify quick", "first batch of all its rows"):
        assert steps[name]["seconds"] < 3, (name, steps)
    base = steps["start"]["peak_mb"]
    for name in ("open", "plan", "write a shard", "reopen and plan", "verify quick"):
        assert steps[name]["peak_mb"] < base + 250, (name, steps)
    assert steps["stream"]["peak_mb"] < base + 400, steps
