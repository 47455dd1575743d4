"""Ctrl-C, and SIGTERM to the whole process group, in the middle of a run."""

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


@pytest.mark.flow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_an_interrupted_run_ends_at_once_and_says_so(tmp_path, sent):
    """A signal while training: exit code within seconds, one line, nobody left behind.

    Both reach Prefect's own server too, as from a terminal or from a service manager.
    """
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
        children = psutil.Process(process.pid).children(recursive=True)
        assert children  # Prefect's own server is one
        os.killpg(process.pid, sent)
        _, errors = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 128 + sent
    for _ in range(100):
        if not any(child.is_running() for child in children):
            break
        time.sleep(0.1)
    assert [child.name() for child in children if child.is_running()] == []
    assert "stopped; the same command goes on from here" in errors
    assert "Traceback" not in errors
