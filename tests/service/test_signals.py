"""Signals to a command whose run is recorded on a server that goes on running."""

from __future__ import annotations

import fcntl
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.store.lock import lock_path

pytestmark = pytest.mark.service


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_an_ended_command_is_a_cancelled_run(
    server: Any, project: Path, wait: Any, number: signal.Signals
):
    """It ends within seconds, says so, lets go of its lock, and its run is not called crashed."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "flows.cli", "specialists", str(project)),
            *("--set", "teachers.shades.weights=null", "--set", "specialists.epochs=100000"),
        ],
        env=server.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        teacher = project.parent / "work" / "teachers" / "shades"
        wait(lambda: list(teacher.glob("*/metrics.csv")), "training")
        time.sleep(1)
        # By name too: a check that is scheduled every minute may be running as well.
        mine = {"state": {"type": {"any_": ["RUNNING"]}}, "name": {"like_": project.stem}}
        (run,) = server.ask("flow_runs/filter", {"flow_runs": mine})
        started = time.monotonic()
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        seconds = time.monotonic() - started
    finally:
        process.kill()
    assert process.returncode == 128 + number
    assert seconds < 30
    assert "stopped; the same command goes on from here" in errors
    assert server.state(run["id"]) == "CANCELLED"
    (folder,) = [path for path in teacher.iterdir() if path.is_dir()]
    with lock_path(folder).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
