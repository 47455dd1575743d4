"""The `concentrate` command: help, examples, JSON, exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

Run = Callable[[Path, str], Result]
Line = Callable[[str], str]

VERBS = (
    "run", "plan", "specialists", "label", "verify", "train", "evaluate", "report", "inspect",
    "compare", "gc", "predict", "init",
)  # fmt: skip
ON_A_SERVER = ("deploy", "serve")  # their examples need one: tests/service

pytestmark = pytest.mark.filterwarnings("default")  # Prefect and typer warn at import


def test_the_verbs(tmp_path: Path, run_line: Run):
    """The command has these verbs and no others; --help ends with exit code 0."""
    from flows.cli import app

    names = [c.name or c.callback.__name__ for c in app.registered_commands if c.callback]
    assert sorted(names) == sorted(VERBS + ON_A_SERVER)
    assert run_line(tmp_path, "concentrate --help").exit_code == 0


@pytest.mark.parametrize("verb", VERBS + ON_A_SERVER)
def test_help_has_an_example(tmp_path: Path, verb: str, run_line: Run, example_line: Line):
    """Every verb's help says what it does and shows a line that begins with it."""
    shown = run_line(tmp_path, f"concentrate {verb} --help")
    assert shown.exit_code == 0
    assert example_line(verb).split()[:2] == ["concentrate", verb]
    assert f"Example:  {example_line(verb)}" in shown.stdout
    assert "--json" in shown.stdout


@pytest.mark.flow
@pytest.mark.parametrize("verb", VERBS)
def test_example_runs(steps: Any, verb: str):
    """The example of each verb's help runs as it is written, with STORE, STUDENT, IMAGE put in."""
    result = steps.result(verb)
    assert result.exit_code == 0
    assert result.stdout.strip()
    assert "Traceback" not in result.output


@pytest.mark.flow
@pytest.mark.parametrize("verb", VERBS)
def test_json_is_one_value_on_stdout(steps: Any, verb: str, run_line: Run):
    """With --json stdout is one JSON object or array and nothing else; progress goes elsewhere."""
    steps.result("run")
    step = {"run": "run_again", "label": "label_all"}.get(verb, verb)
    if "--json" in steps.line(step):
        result = steps.result(step)
    else:
        line = steps.line(verb).replace("init pets", "init more")
        result = run_line(steps.folder, f"{line} --json")
    assert result.exit_code == 0, result.output
    assert result.stdout.count("\n") == 1
    assert isinstance(json.loads(result.stdout), dict | list)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("studnet.epochs=3", ["studnet", "did you mean 'student'"]),
        ("student.epochs=0", ["student.epochs", "got 0"]),
        ("student.objective.temperature=3.0", ["[1.0, 2.0]", "got 3.0"]),
        ("teachers.letters.classes=[T, O, Q]", ["letters", "'Q'", "not in the label space"]),
        ("teachers.letters.classes=[T, O, letters/T]", ["letters", "'letters/T'", "duplicate"]),
        ("teachers.letters.classes=absent.txt", ["letters", "absent.txt"]),
        ("teachers.shapes.classes={vertical: shape}", ["'shape'", "'shapes'"]),
        ("teachers.letters.weights=absent.safetensors", ["letters", "absent.safetensors"]),
        ("data.root=NOWHERE", ["NOWHERE", "folder"]),
        ("student.epochs", ["key.path=value"]),
    ],
)
def test_wrong_input_ends_with_two(
    project_folder: Path, run_line: Run, setting: str, expected: list[str]
):
    """A wrong setting is exit code 2 and a message that names it; no traceback, empty stdout."""
    result = run_line(project_folder, f"concentrate plan project.yaml --json --set '{setting}'")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.count("error: ") == 1
    assert "Traceback" not in result.stderr
    for part in expected:
        assert part in result.stderr


@pytest.mark.parametrize(
    "line",
    [
        "concentrate plan absent.yaml",
        "concentrate run absent.yaml",
        "concentrate inspect absent.zarr",
        "concentrate predict . letters.txt",
        "concentrate verify project.yaml --depth deep",
        "concentrate label project.yaml --teacher ../letters",
        "concentrate run project.yaml --only label --from train",
        "concentrate run project.yaml --only fly",
        "concentrate fly",
    ],
)
def test_wrong_arguments_fail_with_a_message(project_folder: Path, run_line: Run, line: str):
    """A file, folder or word that is not there is an error message, not a traceback."""
    result = run_line(project_folder, line)
    assert result.exit_code in (1, 2)
    assert result.stdout == ""
    assert result.stderr.strip()
    assert "Traceback" not in result.stderr
