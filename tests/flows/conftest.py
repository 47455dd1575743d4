"""A tiny project of one's own images, and the verbs run over it once, in order, in one process."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from torchvision import models
from typer.testing import CliRunner, Result

# Before anything imports Prefect: nothing of the user's own server, home or telemetry.
_HOME = tempfile.mkdtemp(prefix="prefect-test-")
atexit.register(shutil.rmtree, _HOME, ignore_errors=True)
os.environ.update(
    PREFECT_HOME=_HOME,
    PREFECT_RESULTS_LOCAL_STORAGE_PATH=f"{_HOME}/results",
    PREFECT_SERVER_ANALYTICS_ENABLED="false",
    PREFECT_LOGGING_TO_API_ENABLED="false",
    PREFECT_LOGGING_LEVEL="CRITICAL",
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS="180",
    DO_NOT_TRACK="1",
)
for _name in ("PREFECT_API_URL", "PREFECT_PROFILE"):
    os.environ.pop(_name, None)

LETTERS = ("T", "O", "L")  # the order of the checkpoint's outputs, which is not alphabetical
SHAPES = ("circle", "square", "triangle")
PROJECT = """
workspace: work
data: {source: image_folder, root: IMAGES, vertical_depth: 1, test_fraction: 0.25}
views: {count: 2, crop: {scale: [0.6, 1.0]}, flip: 0.5}
teachers:
  - name: letters
    builder: torchvision:shufflenet_v2_x0_5
    weights: letters.safetensors
    classes: letters.txt
    input: {size: 40, mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25]}
  - name: shapes
    builder: python:pipeline.models.backbones:glyph_resnet
    builder_args: {in_channels: 3, width: 8}
    weights: null
    classes: {vertical: shapes}
    input: {size: 32}
specialists: {epochs: 2, batch_size: 16}
labels: {k: 2, temperatures: [1.0, 2.0], shard_rows: 64, chunk_rows: 32}
student:
  builder: pipeline.models.backbones:glyph_resnet
  builder_args: {in_channels: 3, width: 8}
  input: {size: 24}
  objective: {name: soft_labels, temperature: 2.0}
  epochs: 1
  batch_size: 16
runtime: {device: cpu}
"""


def draw(name: str, number: int, side: int = 32) -> Image.Image:
    """Return a coloured picture of a class; the number changes colours and place."""
    rng = np.random.default_rng([number, len(name), ord(name[0])])
    paper = tuple(int(v) for v in rng.integers(160, 256, 3))
    ink = tuple(int(v) for v in rng.integers(0, 110, 3))
    image = Image.new("RGB", (side, side), paper)
    pen = ImageDraw.Draw(image)
    left, top = (int(v) for v in rng.integers(2, side // 4, 2))
    right, bottom = side - 3, side - 3
    middle = (left + right) // 2
    match name:
        case "circle":
            pen.ellipse((left, top, right, bottom), fill=ink)
        case "square":
            pen.rectangle((left, top, right, bottom), fill=ink)
        case "triangle":
            pen.polygon((middle, top, right, bottom, left, bottom), fill=ink)
        case "O":
            pen.ellipse((left, top, right, bottom), outline=ink, width=4)
        case "T":
            pen.line((left, top, right, top, middle, top, middle, bottom), fill=ink, width=4)
        case "L":
            pen.line((left, top, left, bottom, right, bottom), fill=ink, width=4)
    return image


def write_images(root: Path, each: int = 12) -> None:
    """Write 2 verticals x 3 classes, with one file of every odd kind among the squares."""
    for vertical, names in (("letters", sorted(LETTERS)), ("shapes", SHAPES)):
        for name in names:
            folder = root / vertical / name
            folder.mkdir(parents=True)
            for number in range(each):
                draw(name, number).save(folder / f"{number:02d}.png")
    odd = root / "shapes" / "square"
    plain = draw("square", 99)
    plain.convert("L").save(odd / "gray.png")
    plain.convert("RGBA").save(odd / "alpha.png")
    plain.quantize(8).save(odd / "palette.png", transparency=0)
    deep = np.asarray(plain.convert("L"), np.uint16) * 257
    Image.fromarray(deep).save(odd / "deep.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    plain.save(odd / "turned.jpg", exif=turned)
    (odd / "broken.png").write_bytes((odd / "00.png").read_bytes()[:90])


def checkpoint(seed: int, biases: tuple[float, ...]) -> dict[str, torch.Tensor]:
    """Return a state dict of a classifier that gives the same logits to every image."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = models.shufflenet_v2_x0_5(weights=None, num_classes=len(biases))
    torch.nn.init.zeros_(network.fc.weight)
    network.fc.bias.data = torch.tensor(biases)
    return network.state_dict()


def write_project(folder: Path) -> None:
    """Write images, a checkpoint with its class list, and the project file."""
    write_images(folder / "IMAGES")
    save_file(checkpoint(0, (3.0, 1.0, -1.0)), folder / "letters.safetensors")
    (folder / "letters.txt").write_text("\n".join(LETTERS) + "\n", encoding="utf-8")
    (folder / "project.yaml").write_text(PROJECT, encoding="utf-8")


def invoke(folder: Path, line: str) -> Result:
    """Run one `concentrate ...` line in a folder, as a shell there would."""
    from flows.cli import app

    program, *arguments = shlex.split(line)
    assert program == "concentrate"
    with contextlib.chdir(folder):
        return CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})


def example(verb: str) -> str:
    """Return the example line of a verb's help."""
    from flows.cli import app

    (command,) = [
        found
        for found in app.registered_commands
        if found.callback is not None and (found.name or found.callback.__name__) == verb
    ]
    return str(command.epilog).partition("Example:[/bold]")[2].strip()


@dataclass
class Steps:
    """The verbs in order over one project, each run once and only when a test asks for it."""

    folder: Path
    results: dict[str, Result] = field(default_factory=dict)

    ORDER = (
        "init",
        "plan",
        "specialists",
        "label",
        "label_all",
        "verify",
        "train",
        "evaluate",
        "report",
        "run_again",
        "plan_again",
        "inspect",
        "compare",
        "gc",
        "predict",
        "run",
    )

    def line(self, step: str) -> str:
        """Return the command line of a step: the verb's own example wherever it has one."""
        if step == "label_all":
            return "concentrate label project.yaml --json"
        if step.endswith("_again"):
            return f"concentrate {step.removesuffix('_again')} project.yaml --json"
        line = example(step)
        for word, path in (
            ("STORE", next(self.folder.glob("work/labels/letters/*.zarr"), None)),
            ("STUDENT", self.folder / "work" / "students" / "student"),
            ("IMAGE", self.folder / "IMAGES" / "letters" / "T" / "00.png"),
        ):
            line = " ".join(str(path) if part == word else part for part in line.split())
        return line

    def result(self, step: str) -> Result:
        """Return a step's result, after all steps before it."""
        for name in self.ORDER[: self.ORDER.index(step) + 1]:
            if name not in self.results:
                self.results[name] = invoke(self.folder, self.line(name))
                assert self.results[name].exit_code == 0, (
                    f"{self.line(name)}\n{self.results[name].output}"
                )
        return self.results[step]

    def json(self, step: str) -> Any:
        """Return the one JSON value that a step printed to stdout."""
        return json.loads(self.result(step).stdout)


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """One Prefect server, with a database of its own, for all tests.

    torch takes one thread meanwhile: on networks this small, more of them only wait for another.
    """
    from prefect.testing.utilities import prefect_test_harness

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with prefect_test_harness(server_startup_timeout=180):
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def steps(tmp_path_factory: pytest.TempPathFactory, prefect_server: None) -> Steps:
    """The tiny project, on which every verb is run in order."""
    folder = tmp_path_factory.mktemp("project")
    write_project(folder)
    return Steps(folder)


@pytest.fixture
def project_folder(tmp_path: Path) -> Path:
    """A fresh tiny project, on which nothing has run."""
    write_project(tmp_path)
    return tmp_path


@pytest.fixture
def run_line() -> Callable[[Path, str], Result]:
    """Run a command line in a folder."""
    return invoke


@pytest.fixture
def example_line() -> Callable[[str], str]:
    """Return a verb's example."""
    return example
