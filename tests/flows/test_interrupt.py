"""A run that is ended from outside, in the middle of training: Ctrl-C, SIGTERM and SIGKILL."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from PIL import Image

pytestmark = pytest.mark.flow


@pytest.fixture
def training(tmp_path):
    """A `concentrate specialists` that is in the middle of training, and marks its children."""
    for name, value in (("dark", 20), ("light", 230)):
        for number in range(12):
            path = tmp_path / "images" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (value, value, number)).save(path)
    (tmp_path / "project.yaml").write_text(
        "workspace: work\n"
        "data: {source: image_folder, root: images}\n"
        "teachers:\n"
        "  - name: tiny\n"
        "    builder: pipeline.models.backbones:glyph_resnet\n"
        "    builder_args: {in_channels: 3, width: 8}\n"
        "    classes: {vertical: all}\n"
        "    input: {size: 16}\n"
        "specialists: {epochs: 100000}\n"
    )
    environment = os.environ | {
        "PREFECT_HOME": str(tmp_path / "home"),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    environment.pop("PREFECT_API_URL", None)
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "specialists", "project.yaml"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        log = tmp_path / "work" / "teachers" / "tiny"
        for _ in range(1200):
            if list(log.glob("*/metrics.csv")):
                break
            time.sleep(0.1)
        time.sleep(1)
        yield process
    finally:
        process.kill()
        process.communicate()


def still_there(processes: list[psutil.Process], seconds: float) -> list[str]:
    """Return the names of those that have not ended after so many seconds."""
    _, left = psutil.wait_procs(processes, timeout=seconds)
    return [process.name() for process in left]


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_an_interrupted_run_ends_at_once_and_says_so(training, sent):
    """A signal while training: exit code within seconds, one line, nobody left behind.

    Both reach Prefect's own server too, as from a terminal or from a service manager.
    """
    children = psutil.Process(training.pid).children(recursive=True)
    assert children  # Prefect's own server is one
    os.killpg(training.pid, sent)
    _, errors = training.communicate(timeout=20)
    assert training.returncode == 128 + sent
    assert still_there(children, 10) == []
    assert "stopped; the same command goes on from here" in errors
    assert "Traceback" not in errors


def test_a_killed_run_leaves_no_process(training):
    """SIGKILL of the command alone: its Prefect server ends by itself within seconds."""
    children = psutil.Process(training.pid).children(recursive=True)
    assert any("uvicorn" in child.cmdline() for child in children)
    os.kill(training.pid, signal.SIGKILL)
    assert training.wait(timeout=10) == -signal.SIGKILL
    assert still_there(children, 15) == []
