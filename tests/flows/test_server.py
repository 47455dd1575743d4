"""Flows on a Prefect server that is already running."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

pytestmark = pytest.mark.flow


def free_port() -> int:
    """Return a port of the loopback that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def ask(url: str, body: dict | None = None) -> object:
    """Return the JSON answer of the server."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.loads(answer.read())


@pytest.fixture
def server(tmp_path):
    """A real server on the loopback, with a home of its own."""
    port = free_port()
    environment = os.environ | {"PREFECT_HOME": str(tmp_path / "home")}
    environment.pop("PREFECT_API_URL", None)
    command = [sys.executable, "-m", "prefect", "server", "start", "--no-ui"]
    process = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    url = f"http://127.0.0.1:{port}/api"
    try:
        for _ in range(240):
            try:
                ask(f"{url}/health")
                break
            except OSError:
                time.sleep(0.5)
        yield url, environment
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_running_server_gets_the_run(server, tmp_path, data_folder):
    """With PREFECT_API_URL set, the flow run and its tasks are recorded on that server."""
    url, environment = server
    (tmp_path / "project.yaml").write_text(
        "workspace: work\n"
        f"data: {{source: image_folder, root: {data_folder}}}\n"
        "teachers:\n"
        "  - name: tiny\n"
        "    builder: pipeline.models.backbones:glyph_resnet\n"
        "    builder_args: {in_channels: 3, width: 8}\n"
        "    classes: {vertical: all}\n"
        "    input: {size: 16}\n"
        "specialists: {epochs: 1}\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", "specialists", "project.yaml", "--json"],
        cwd=tmp_path,
        env=environment | {"PREFECT_API_URL": url, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["teacher"] == "tiny"
    runs = ask(f"{url}/flow_runs/filter", {})
    assert [run["state"]["type"] for run in runs] == ["COMPLETED"]
    tasks = ask(f"{url}/task_runs/filter", {})
    assert [task["name"] for task in tasks] == ["specialist/tiny"]


@pytest.fixture
def data_folder(tmp_path):
    """Two classes of plain images."""
    from PIL import Image

    for name, value in (("dark", 20), ("light", 230)):
        for number in range(12):
            path = tmp_path / "images" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (value, value, number)).save(path)
    return tmp_path / "images"
