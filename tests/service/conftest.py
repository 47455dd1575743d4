"""A Prefect server, a worker and a deployed project, all real, on the loopback."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

ROOT = Path(__file__).parents[2]

# On a loaded machine two connections of Prefect's server may wait for each other's lock on its
# SQLite file until the busy timeout of 60 s; then all goes on. No wait may be shorter than that.
PATIENCE_SECONDS = 180

PROJECT = """
workspace: work
data: {source: image_folder, root: images, vertical_depth: 1, test_fraction: 0.25}
views: {count: 2, crop: {scale: [0.6, 1.0]}}
teachers:
  - &one
    name: shades
    builder: python:pipeline.models.backbones:glyph_resnet
    builder_args: {in_channels: 3, width: 8}
    weights: shades.safetensors
    classes: {vertical: shades}
    input: {size: 16}
  - {<<: *one, name: tints, weights: tints.safetensors, classes: {vertical: tints}}
labels: {k: 2}
student:
  builder: pipeline.models.backbones:glyph_resnet
  builder_args: {in_channels: 3, width: 8}
  input: {size: 16}
  epochs: 1
  batch_size: 8
  control: false
runtime: {device: cpu}
"""


def write_weights(path: Path, seed: int) -> None:
    """Write weights of a teacher with two classes."""
    from pipeline.models.backbones import glyph_resnet

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        state = glyph_resnet(2, in_channels=3, width=8).state_dict()
    save_file(state, path)


def write_project(folder: Path) -> Path:
    """Write images, two teachers and the project file; return its path."""
    for vertical, names in (("shades", ("dark", "light")), ("tints", ("red", "blue"))):
        for number, name in enumerate(names):
            for image in range(12):
                path = folder / "images" / vertical / name / f"{image}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                colour = (30 + 90 * number, 10 * image, 200 - 60 * number)
                Image.new("RGB", (16, 16), colour).save(path)
        write_weights(folder / f"{vertical}.safetensors", len(vertical))
    config = folder / f"{folder.name}.yaml"
    config.write_text(PROJECT, encoding="utf-8")
    return config


@dataclass
class Service:
    """A running server with its API, and the environment of whoever talks to it."""

    url: str
    environment: dict[str, str]

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Return the JSON answer of the server: POST with a body, GET without.

        It answers 503 while another process writes its SQLite file; its own clients ask again too.
        """
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}/{path}", data, headers)
        for attempt in range(6):
            try:
                with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
                    return json.loads(answer.read() or "null")
            except urllib.error.HTTPError as error:
                if error.code != 503 or attempt == 5:
                    raise
                time.sleep(1)
        raise AssertionError("not reached")

    def command(self, *words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run one `concentrate` line to its end."""
        return subprocess.run(
            [sys.executable, "-m", "flows.cli", *words],
            cwd=cwd,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_SECONDS,
        )

    def deployment(self, name: str) -> dict[str, Any]:
        """Return one deployment by `flow/name`."""
        return self.ask(f"deployments/name/{name}")

    def start(self, name: str, **parameters: Any) -> str:
        """Start a run of a deployment and return its id."""
        found = self.deployment(name)
        return self.ask(
            f"deployments/{found['id']}/create_flow_run",
            {"parameters": parameters, "state": {"type": "SCHEDULED"}},
        )["id"]

    def runs(self, name: str) -> list[dict[str, Any]]:
        """Return all runs of a deployment, oldest first."""
        found = self.deployment(name)["id"]
        runs = self.ask("flow_runs/filter", {"flow_runs": {"deployment_id": {"any_": [found]}}})
        return sorted(runs, key=lambda run: run["created"])

    def state(self, run: str) -> str:
        """Return the type of a run's state."""
        return self.ask(f"flow_runs/{run}")["state_type"]

    def ended(self, run: str) -> str:
        """Wait until a run is over and return how it ended."""
        final = ("COMPLETED", "FAILED", "CANCELLED", "CRASHED")
        return wait_for(lambda: (s := self.state(run)) in final and s, f"run {run}")

    def artifacts(self, key: str) -> list[dict[str, Any]]:
        """Return the artifacts of a key, newest first."""
        body = {"artifacts": {"key": {"any_": [key]}}, "sort": "CREATED_DESC"}
        return self.ask("artifacts/filter", body)


def wait_for(found: Callable[[], Any], what: str) -> Any:
    """Return the first true answer; fail when patience ends."""
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        if answer := found():
            return answer
        time.sleep(0.3)
    raise AssertionError(f"not within {PATIENCE_SECONDS} s: {what}")


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process and what it started, by its own group."""
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="session")
def wait() -> Callable[..., Any]:
    """Wait for something to become true."""
    return wait_for


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A real server on a free port of the loopback, with a home of its own."""
    home = tmp_path_factory.mktemp("server")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = int(listener.getsockname()[1])
    url = f"http://127.0.0.1:{port}/api"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")} | {
        "PREFECT_HOME": str(home / "home"),
        "PREFECT_API_URL": url,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5",
        "DO_NOT_TRACK": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
    }
    command = [sys.executable, "-m", "prefect", "server", "start", "--no-ui"]
    with (home / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    service = Service(url, environment)

    def healthy() -> bool:
        try:
            return bool(service.ask("health"))
        except OSError:
            return False

    try:
        wait_for(healthy, f"server, see {home / 'server.log'}")
        yield service
    finally:
        end(process)


@pytest.fixture(scope="session")
def deployed(server: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a project that is deployed, with a worker that runs it."""
    folder = tmp_path_factory.mktemp("pets")
    config = write_project(folder)
    # The weekly check fires every minute here, so that a schedule is seen to fire.
    done = server.command(
        "deploy", str(config), "--pool", "tests", "--weekly", "* * * * *", "--json"
    )
    assert done.returncode == 0, done.stderr
    with (folder / "worker.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", "worker", "start", "--pool", "tests"],
            env=server.environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield folder
    finally:
        end(process)


@pytest.fixture
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project file that is not deployed, under a name of its own."""
    return write_project(tmp_path_factory.mktemp("cats"))
