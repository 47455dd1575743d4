"""`concentrate serve`: the same schedules in one process, without a work pool."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.service


def test_serve_runs_what_is_started_and_pauses_its_schedules(
    server: Any, project: Path, wait: Any, tmp_path: Path
):
    """A run of the label flow completes; interrupted, the process ends and schedules pause."""
    with (tmp_path / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.cli", "serve", str(project), "--json"],
            env=server.environment | {"PREFECT_RUNNER_POLL_FREQUENCY": "1"},
            stdout=log,
            stderr=log,
        )
    label = f"label-teachers/{project.stem}"

    def paused() -> bool | None:
        try:
            return server.deployment(label)["paused"]
        except OSError:
            return None

    try:
        wait(lambda: paused() is False, "the deployment")
        assert server.deployment(label)["work_pool_name"] is None
        assert server.ended(server.start(label, teacher="tints")) == "COMPLETED"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()
    assert paused()
    assert list((project.parent / "work" / "labels" / "tints").glob("*.zarr"))
    assert server.command("deploy", str(project), "--pool", "others").returncode == 0
    assert paused() is False


def test_two_projects_of_one_name_are_kept_apart(server: Any, project: Path, tmp_path: Path):
    """Deploying another file under a name that is taken is refused, and says by whom."""
    assert server.command("deploy", str(project), "--pool", "others").returncode == 0
    other = tmp_path / "elsewhere" / project.name
    other.parent.mkdir()
    other.write_text(project.read_text())
    refused = server.command("deploy", str(other), "--pool", "others")
    assert refused.returncode == 2
    assert str(project) in refused.stderr
    assert server.command("deploy", str(project), "--nightly", "0 3 * * *").returncode == 0
    (schedule,) = server.deployment(f"label-teachers/{project.stem}")["schedules"]
    assert schedule["schedule"]["cron"] == "0 3 * * *"
