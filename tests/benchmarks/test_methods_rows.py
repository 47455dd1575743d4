"""The rows of `benchmarks/methods.yaml`: each is a project, each gain counted from another row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config import load_project

ROOT = Path(__file__).parents[2]
GROUPS: dict[str, Any] = yaml.safe_load(
    (ROOT / "benchmarks" / "methods.yaml").read_text(encoding="utf-8")
)


@pytest.mark.parametrize("name", GROUPS)
def test_every_row_is_a_project(name: str):
    """The settings of all rows of a group fit its project file, and no two rows are the same."""
    group, found = GROUPS[name], []
    for row in group["rows"].values():
        settings = group.get("set", {}) | (row or {}).get("set", {})
        overrides = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
        project = load_project(ROOT / "flows" / "configs" / group["config"], overrides)
        found.append(project.model_dump_json())
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("name", GROUPS)
def test_every_gain_is_counted_from_a_row(name: str):
    """`against` names a row of the group, and every target belongs to a gain."""
    rows = {key: row or {} for key, row in GROUPS[name]["rows"].items()}
    assert {row["against"] for row in rows.values() if "against" in row} <= set(rows)
    assert all("against" in row for row in rows.values() if "target" in row)
