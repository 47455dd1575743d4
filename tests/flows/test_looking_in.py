"""The verbs that look into stores, over the tiny project."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

Run = Callable[[Path, str], Result]

pytestmark = [pytest.mark.flow, pytest.mark.filterwarnings("default")]


def test_inspect_writes_a_page_with_likely_label_errors(steps: Any, run_line: Run):
    """The teacher that says T to everything disagrees on O and L; the page shows their images."""
    steps.result("inspect")
    store = next(
        path
        for path in steps.folder.glob("work/labels/letters/*.zarr")
        if '"split": "train"' in (path / "zarr.json").read_text(encoding="utf-8")
    )
    line = f"concentrate inspect {store} --html look/page.html --project project.yaml --json"
    done = run_line(steps.folder, line)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    (letters,) = found["verticals"]
    assert letters["labels"] == [letters["rows"]] * 2
    assert 0 < found["agreement"] < 1
    assert {pair["first"] for pair in found["confused"]} == {"letters/T"}
    assert {row["hard"] for row in found["disagreements"]} == {"letters/O", "letters/L"}
    page = (steps.folder / "look" / "page.html").read_text(encoding="utf-8")
    assert page.count("data:image/") == len(found["disagreements"])
    for row in found["disagreements"]:
        assert row["key"] in page
    table = run_line(steps.folder, f"concentrate inspect {store}").stdout
    assert "likely label errors" in table
    assert found["disagreements"][0]["hard"] in table


def test_compare_says_where_two_teachers_differ(steps: Any, run_line: Run):
    """A store agrees with itself; teachers of other classes agree nowhere; splits are refused."""
    assert "100.00 %" in steps.result("compare").stdout
    stores = {}
    for teacher in ("letters", "shapes"):
        for path in steps.folder.glob(f"work/labels/{teacher}/*.zarr"):
            attributes = json.loads((path / "zarr.json").read_text(encoding="utf-8"))["attributes"]
            stores[teacher, attributes["soft_labels"]["split"]] = path
    line = f"concentrate compare {stores['letters', 'train']} {stores['shapes', 'train']}"
    done = run_line(steps.folder, f"{line} --json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["classes"], found["labels"]) == ([0, 3, 3], 0)
    assert "no class in common" in found["kl_problem"]
    assert "no label that both have" in run_line(steps.folder, line).stdout
    line = f"concentrate compare {stores['letters', 'train']} {stores['letters', 'test']}"
    refused = run_line(steps.folder, line)
    assert refused.exit_code == 2
    assert "split must be 'train'" in refused.stderr
