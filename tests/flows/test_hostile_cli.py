"""Hostile files and names through the command line: an exit code and a message, nothing run."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import Result

Run = Callable[[Path, str], Result]

pytestmark = pytest.mark.filterwarnings("default")  # Prefect and typer warn at import

NAMES = (
    "<img src=x onerror=alert(1)>",
    "\x1b[31mred\x1b]0;title\x07",
    "two\nlines",
    "abc\u202efed",
    "[bold]rich[bold]",
    "...",
    "a|b `c`",
    "=1+2",
    "n" * 200,
    "\x9b31m",
)


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        """Return the call that unpickling makes."""
        return Path.write_text, (self.target, "ran")


@pytest.mark.flow
@pytest.mark.parametrize("name", ["evil.pt", "plain.pth", "named.safetensors"])
def test_a_pickled_checkpoint_is_not_run(
    project_folder: Path, run_line: Run, prefect_server: None, name: str
) -> None:
    """`label` with weights that hold code: exit code 2, why, and the code has not run."""
    target = project_folder / "ran"
    if name == "evil.pt":
        torch.save({"state_dict": {"fc.weight": Evil(target)}}, project_folder / name)
    else:
        (project_folder / name).write_bytes(pickle.dumps(Evil(target)))
    line = "concentrate label project.yaml --teacher letters --set teachers.letters.weights="
    result = run_line(project_folder, line + name)
    assert (result.exit_code, result.stdout) == (2, "")
    assert name in result.stderr
    assert "Traceback" not in result.stderr
    assert not target.exists()


@pytest.fixture
def named_folder(tmp_path: Path) -> Path:
    """Class folders with hostile names, and a project of them."""
    for number, name in enumerate(NAMES):
        folder = tmp_path / "images" / name
        folder.mkdir(parents=True)
        for image in range(3):
            Image.new("RGB", (8, 8), (number, image, 0)).save(folder / f"{image}.png")
        (folder / "\x1b[2Jbroken.png").write_bytes(b"no image")
    (tmp_path / "weights.safetensors").write_bytes(b"")
    (tmp_path / "project.yaml").write_text(
        "workspace: work\n"
        "data: {source: image_folder, root: images}\n"
        "teachers:\n"
        "  - {name: all, builder: 'torchvision:resnet18', weights: null,"
        " classes: {vertical: all}}\n",
        encoding="utf-8",
    )
    return tmp_path


def assert_harmless(text: str) -> None:
    """Nothing but printable characters, blanks and newlines."""
    assert [c for c in text if not c.isprintable() and c not in "\n\t"] == []


@pytest.mark.parametrize(
    "line",
    [
        "concentrate plan project.yaml",
        "concentrate plan project.yaml --json",
        "concentrate init new --images images",
        "concentrate init newer --images images --json",
        "concentrate plan project.yaml --set teachers.all.classes=['\x1b[31m','\u202e']",
        "concentrate plan '\x1b[31m.yaml'",
        "concentrate inspect '\x1b[31m.zarr'",
    ],
)
def test_names_do_not_speak_to_the_terminal(named_folder: Path, run_line: Run, line: str) -> None:
    """Whatever folders and arguments are called, what is printed is plain text."""
    result = run_line(named_folder, line)
    assert result.exit_code in (0, 2)
    assert_harmless(result.stdout)
    assert_harmless(result.stderr)
    assert "Traceback" not in result.stderr


def test_class_names_are_made_printable(named_folder: Path, run_line: Run) -> None:
    """Every class is there once, under a name that can be shown."""
    assert run_line(named_folder, "concentrate plan project.yaml").exit_code == 0
    space = json.loads((named_folder / "work/data/label_space.json").read_text(encoding="utf-8"))
    assert len(space["classes"]) == len(NAMES) - 1  # "..." is a hidden folder
    assert all(name.isprintable() for name in space["classes"])
    assert "all/<img src=x onerror=alert(1)>" in space["classes"]
    assert_harmless((named_folder / "work/data/quarantine.csv").read_text(encoding="utf-8"))


@pytest.mark.parametrize("value", [{"a": "\x1b[31m"}, ["\u202e\x9b\ud800"], "\U000e0001x"])
def test_json_is_printable_and_keeps_its_values(
    capsys: pytest.CaptureFixture[str], value: object
) -> None:
    """Characters that a terminal would act on are escapes, which read back to the same value."""
    from flows.cli.options import show

    show(value, True, print)
    text = capsys.readouterr().out
    assert_harmless(text)
    assert json.loads(text) == value
