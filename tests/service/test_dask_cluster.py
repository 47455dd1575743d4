"""Labelling on a real Dask cluster: a scheduler and two workers, each a process of its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from pipeline.config import load_project
from pipeline.data import update_manifest
from pipeline.store import open_soft_labels
from pipeline.store.lock import writer_lock
from pipeline.teachers.publishing import label_here
from pipeline.teachers.spec import resolve_teachers
from storage_schemas.errors import StoreError

pytestmark = pytest.mark.service


def free_port() -> int:
    """Return a port of the loopback that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass
class Cluster:
    """A scheduler and its workers, by name; `environment` is that of whoever uses them."""

    address: str
    environment: dict[str, str]
    folder: Path
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, *words: str, **environment: str) -> None:
        """Start one process of the cluster, with its log beside the others."""
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", "distributed.cli." + words[0], *words[1:]],
                env=self.environment | environment,
                stdout=log,
                stderr=log,
            )

    def start_worker(self, name: str, *words: str, **environment: str) -> None:
        """Start one worker with one thread, which nobody restarts."""
        options = ("--host", "127.0.0.1", "--nthreads", "1", "--no-dashboard", "--no-nanny")
        self.start(name, "dask_worker", self.address, *options, *words, **environment)

    def end(self) -> None:
        """End every process by its own handle, workers first."""
        for process in reversed(self.processes.values()):
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@dataclass(frozen=True)
class Work:
    """A project with a recorded teacher, and how to label it."""

    config: Path
    environment: dict[str, str]
    records: Path

    def words(self, workspace: str, *settings: str) -> list[str]:
        """Return the arguments of `concentrate label` into a workspace of that name."""
        sets = [f"workspace={workspace}", *settings]
        return ["label", str(self.config), "--json", *(w for s in sets for w in ("--set", s))]

    @contextmanager
    def labelling(self, workspace: str, *settings: str) -> Iterator[subprocess.Popen[str]]:
        """Start `concentrate label` into a workspace of that name; it ends with the context."""
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.cli", *self.words(workspace, *settings)],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    def label(self, workspace: str, *settings: str) -> subprocess.CompletedProcess[str]:
        """Run `concentrate label` into a workspace of that name."""
        return subprocess.run(
            [sys.executable, "-m", "flows.cli", *self.words(workspace, *settings)],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    def undisturbed(self) -> list[Path]:
        """Label in this process, without Prefect and Dask; returns the stores."""
        project = load_project(self.config, ["workspace=undisturbed"])
        update = update_manifest(project)
        for spec in resolve_teachers(project, update.label_space, update.manifest):
            label_here(project, spec, update.label_space, update.manifest)
        return self.stores("undisturbed")

    def found(self, kind: str) -> list[tuple[int, str]]:
        """Return process and text of the records of a kind."""
        found = []
        for path in self.records.glob(f"{kind}-*"):
            try:
                found.append((int(path.name.split("-")[1]), path.read_text(encoding="utf-8")))
            except FileNotFoundError:
                continue
        return found

    def stores(self, workspace: str) -> list[Path]:
        """Return the stores of a workspace."""
        return sorted((self.config.parent / workspace / "labels").glob("*/*.zarr"))


@pytest.fixture
def work(
    server: Any, tmp_path: Path, tiny_project: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Work]:
    """A project of 16 shards whose teacher is recorded wherever it is loaded."""
    tiny_project.write_project(tmp_path, 40)
    config = tmp_path / "project.yaml"
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    settings["teachers"][0]["builder"] = "python:recorded_teacher:build"
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    records = tmp_path / "records"
    records.mkdir()
    path = os.pathsep.join([str(Path(__file__).parent), server.environment["PYTHONPATH"]])
    monkeypatch.syspath_prepend(Path(__file__).parent)
    monkeypatch.setenv("RECORDS", str(records))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a worker does, for the same logits to the last bit
    environment = server.environment | {"PYTHONPATH": path, "RECORDS": str(records)}
    yield Work(config, environment, records)
    torch.set_num_threads(threads)


@pytest.fixture
def cluster(work: Work, tmp_path: Path) -> Iterator[Cluster]:
    """A scheduler on the loopback; a test starts the workers that it needs."""
    port = free_port()
    found = Cluster(f"tcp://127.0.0.1:{port}", work.environment, tmp_path)
    options = ("--host", "127.0.0.1", "--port", str(port), "--no-dashboard")
    found.start("scheduler", "dask_scheduler", *options, "--dashboard-address", "127.0.0.1:0")
    try:
        yield found
    finally:
        found.end()


def on(cluster: Cluster, *settings: str) -> tuple[str, ...]:
    """Return the settings with which a project labels on a cluster."""
    return ("runtime.runner=dask", f"runtime.address={cluster.address}", *settings)


def assert_equal_stores(first: list[Path], second: list[Path]) -> None:
    """Every store of one list has the commits and the bytes of that of the other."""
    assert [path.name for path in first] == [path.name for path in second]
    assert len(first) == 2
    for one, other in zip(map(open_soft_labels, first), map(open_soft_labels, second), strict=True):
        np.testing.assert_array_equal(one.commits, other.commits)
        committed = np.argwhere(one.commits[:, :, 0])
        assert len(committed)
        for view, shard in committed.tolist():
            for a, b in zip(
                one.read_shard(view, shard), other.read_shard(view, shard), strict=True
            ):
                np.testing.assert_array_equal(a, b)


def test_each_worker_of_a_local_cluster_loads_its_teacher_once(work: Work):
    """Two worker processes share the shards, load the teacher once each, and write equal stores."""
    done = work.label("local", "runtime.runner=dask", "runtime.workers=2")
    assert done.returncode == 0, done.stderr
    groups = json.loads(done.stdout)
    assert len([group for group in groups if group["split"] == "train"]) == 4
    loads = [pid for pid, _ in work.found("loaded")]
    assert len(loads) == len(set(loads)) == 3  # the flow counts its parameters, and two workers
    assert "distributed" not in done.stderr
    assert_equal_stores(work.stores("local"), work.undisturbed())


def test_a_killed_worker_costs_its_shards_only(work: Work, cluster: Cluster, wait: Any):
    """SIGKILL in the middle of a shard's write: the run ends, equal to an undisturbed one."""
    for name in ("one", "two"):
        cluster.start_worker(name, SLOW_DISK="0.3")
    victim = cluster.processes["two"]

    def is_writing() -> bool:
        return any(pid == victim.pid and "/ids/" in path for pid, path in work.found("flushing"))

    with work.labelling("killed", *on(cluster)) as process:
        wait(is_writing, "the second worker to write a shard")
        victim.kill()
        assert is_writing()  # it never came back from that flush, so the shard has no record
        stores = [open_soft_labels(path) for path in work.stores("killed")]
        (train,) = [store.path for store in stores if store.schema.split == "train"]
        with pytest.raises(StoreError, match=f"process {process.pid} on"), writer_lock(train):
            pass
        output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert len(json.loads(output)) > 2
    assert_equal_stores(work.stores("killed"), work.undisturbed())


def test_workers_of_a_killed_run_stop_at_its_lock(work: Work, cluster: Cluster, wait: Any):
    """Its workers live on, but commit nothing once its lock is gone; the next run goes on."""
    cluster.start_worker("one", SLOW_DISK="1")
    with work.labelling("left", *on(cluster)) as process:
        wait(lambda: work.found("flushing"), "the worker to write a shard")
        process.kill()
    wait(lambda: not work.found("flushing"), "the worker to stop")
    time.sleep(1)
    assert cluster.processes["one"].poll() is None
    assert not work.found("flushing")
    left = [open_soft_labels(path).commits[:, :, 0] for path in work.stores("left")]
    # Its first task has more shards than that; four of them are written at a time.
    assert sum(np.count_nonzero(labels) for labels in left) <= 4
    done = work.label("left")
    assert done.returncode == 0, done.stderr
    assert_equal_stores(work.stores("left"), work.undisturbed())


def test_a_lost_scheduler_is_told(work: Work, cluster: Cluster, wait: Any):
    """The run does not wait for ever: exit code 2, what was lost, and what to do."""
    cluster.start_worker("one", SLOW_DISK="0.3")
    with work.labelling("lost", *on(cluster)) as process:
        wait(lambda: work.found("flushing"), "the worker to write a shard")
        cluster.processes["scheduler"].kill()
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "the Dask scheduler was lost" in errors
    assert "run the command again" in errors


def test_tasks_go_where_their_resources_are(work: Work, cluster: Cluster):
    """With `resources: {GPU: 1}` only the worker that offers a GPU loads the teacher."""
    cluster.start_worker("plain")
    cluster.start_worker("gpu", "--resources", "GPU=1")
    done = work.label("on_gpu", *on(cluster, "runtime.resources={GPU: 1}"))
    assert done.returncode == 0, done.stderr
    loaded = {pid for pid, _ in work.found("loaded")}
    assert cluster.processes["gpu"].pid in loaded
    assert cluster.processes["plain"].pid not in loaded
    refused = work.label("on_tpu", *on(cluster, "runtime.resources={TPU: 1}"))
    assert refused.returncode == 2
    assert "no worker at tcp://127.0.0.1" in refused.stderr
    assert "--resources 'TPU=1'" in refused.stderr


def test_an_error_of_the_user_is_told_as_without_dask(work: Work, cluster: Cluster):
    """A teacher that returns NaN on a worker: exit code 1 and its sentence, no traceback."""
    cluster.start_worker("one")
    path = work.config.parent / "tools.safetensors"
    state = load_file(path)
    for value in state.values():
        if value.is_floating_point():
            value.fill_(torch.nan)
    save_file(state, path)
    done = work.label("nan", *on(cluster))
    assert done.returncode == 1
    assert "teacher 'tools' returned nan for row" in done.stderr
    assert "Traceback" not in done.stderr


def test_nobody_at_the_address(work: Work):
    """Exit code 2 within seconds, with what was expected and what to start."""
    address = f"tcp://127.0.0.1:{free_port()}"
    done = work.label("none", "runtime.runner=dask", f"runtime.address={address}")
    assert done.returncode == 2
    assert f"none answers at {address}" in done.stderr
    assert "dask scheduler" in done.stderr
    assert "Traceback" not in done.stderr
