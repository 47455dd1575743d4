"""One run on several ranks: real torchrun, real processes, two and three of them on a CPU."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest
import timm
import torch
from safetensors.torch import load_file

from pipeline.config import load_project
from pipeline.data import load_label_space, load_manifest
from pipeline.store.lock import writer_lock
from pipeline.store.published import open_published
from pipeline.training import ranks
from pipeline.training.launch import check_devices, train_on_ranks
from pipeline.training.metrics_log import read_metrics
from pipeline.training.runs import student_run, training_rows
from pipeline.training.students import train_student
from storage_schemas.errors import ConfigError, TrainingError
from storage_schemas.manifest import TRAIN

ROOT = Path(__file__).parents[3]


def train(config, *overrides, report=None):
    """Train the student of a project file, on ranks where it asks for some."""
    overrides = [f"student.{setting}" for setting in overrides]
    project = load_project(config, overrides)
    manifest, space = load_manifest(project.workspace), load_label_space(project.workspace)
    published = open_published(project, space, manifest, TRAIN)
    run = student_run(project, "student", space, manifest, published)
    if project.student.devices == 1:
        record = train_student(project, run, space, manifest, published, report=report)
    else:
        images = len(training_rows(manifest, published))
        record = train_on_ranks(project, run, images, str(config), overrides, report=report)
    return run, record


def processes_of(folder):
    """All processes that were started for a run below a folder."""
    return [
        process
        for process in psutil.process_iter(["cmdline", "status"])
        if any(str(folder) in word for word in process.info["cmdline"] or ())
        and process.info["status"] != psutil.STATUS_ZOMBIE
    ]


def all_end(folder, seconds=20.0):
    """Tell whether the processes of a folder end in time."""
    end = time.monotonic() + seconds
    while processes_of(folder) and time.monotonic() < end:
        time.sleep(0.1)
    return processes_of(folder) == []


def losses(run):
    """The terms of the loss by step."""
    names = ("loss", "vertical_loss", "kd_loss", "task_loss", "vertical_probability")
    return {
        int(row["step"]): [row[name] for name in names]
        for row in read_metrics(run.folder / "metrics.csv")
    }


@pytest.fixture
def config(labelled_project, monkeypatch):
    """The project file; its network can be imported here and, through that, on the ranks."""
    monkeypatch.syspath_prepend(str(labelled_project.parent))
    monkeypatch.delenv("RANK_DIES", raising=False)
    return labelled_project


@pytest.mark.service
def test_two_then_three_ranks_train_like_one_process(config, monkeypatch):
    """One process, and 2 ranks of which one is killed, then 3: every term agrees within 1e-5.

    So do the final weights, and those of 1 process that goes on from the checkpoint of 2 ranks.
    The batch of 7 images is divided by neither 2 nor 3.
    """
    alone, _ = train(config, "name=alone")
    expected = losses(alone)
    assert sorted(expected) == list(range(1, 17))

    monkeypatch.setenv("RANK_DIES", "1:8:killed")
    with pytest.raises(TrainingError, match=r"rank 1 of 2 was killed by signal 9") as error:
        train(config, "name=together", "devices=2")
    assert "logs/" in str(error.value)
    monkeypatch.delenv("RANK_DIES")
    folder = config.parent / "work" / "students" / "together"
    assert all_end(folder)
    with writer_lock(folder / alone.folder.name):
        pass
    shutil.copytree(folder / alone.folder.name, folder.with_name("later") / alone.folder.name)

    seen = []
    together, record = train(
        config, "name=together", "devices=3", report=lambda *values: seen.append(values)
    )
    assert together.fingerprint == alone.fingerprint
    assert record["resumed_from"] == 6
    assert seen[-1][:2] == (16, 16)
    assert seen[-1][2]["loss"] == pytest.approx(expected[16][0], abs=1e-5)
    later, record = train(config, "name=later")
    assert record["resumed_from"] == 6
    weights = load_file(alone.weights)
    for run in (together, later):
        found = losses(run)
        assert sorted(found) == sorted(expected)
        for step, values in expected.items():
            assert found[step] == pytest.approx(values, abs=1e-5), step
        for name, tensor in load_file(run.weights).items():
            assert torch.allclose(tensor, weights[name], atol=1e-5), name


@pytest.mark.slow
def test_error_of_one_rank_is_told(config, monkeypatch):
    """An exception on rank 1 is blamed on rank 1, with its message, not on the one that waits."""
    monkeypatch.setenv("RANK_DIES", "1:2:raises")
    with pytest.raises(TrainingError, match=r"(?s)rank 1 of 2 ended with code 1.*network broke"):
        train(config, "name=broken", "devices=2")


@pytest.mark.slow
def test_ctrl_c_ends_every_rank(config):
    """An interrupt in the launching process leaves no process, and the run can go on."""

    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, "name=stopped", "devices=2", "epochs=100000", report=interrupt)
    assert all_end(config.parent / "work" / "students" / "stopped")


@pytest.mark.slow
def test_killed_launcher_leaves_no_rank(config):
    """SIGKILL of the launching process ends torchrun and every rank: nobody trains on unseen.

    While they run, they listen on loopback only.
    """
    script = f"""
        import importlib.util, pathlib, sys
        sys.path.insert(0, {str(config.parent)!r})
        spec = importlib.util.spec_from_file_location("ranks", {__file__!r})
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.train(pathlib.Path({str(config)!r}), "name=orphan", "devices=2", "epochs=100000")
    """
    folder = config.parent / "work" / "students" / "orphan"
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT)
    try:
        for _ in range(600):
            if list(folder.glob("*/ranks/*/progress.json")):
                break
            time.sleep(0.1)
        started = processes_of(folder)
        connections = [one for process in started for one in process.net_connections()]
        open_to = {one.laddr.ip for one in connections if one.status == psutil.CONN_LISTEN}
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    assert len(started) >= 3  # torchrun and two ranks
    assert open_to <= {"127.0.0.1", "::1"}
    assert all_end(folder)


def test_batch_statistics_are_shared_where_a_layer_is_plain(monkeypatch):
    """BatchNorm becomes SyncBatchNorm with its weights; timm's keeps its activation."""

    class Derived(torch.nn.BatchNorm2d):
        pass

    network = timm.create_model("mobilenetv3_small_050", pretrained=False, num_classes=3)
    network.plain = torch.nn.Sequential(torch.nn.BatchNorm2d(4), Derived(4))
    before = {name: tensor.data_ptr() for name, tensor in network.state_dict().items()}
    activations = [m.act for m in network.modules() if hasattr(m, "act")]
    ranks.share_batch_statistics(network)
    assert not any(isinstance(m, torch.nn.SyncBatchNorm) for m in network.modules())

    monkeypatch.setattr(ranks, "rank_and_size", lambda: (0, 2))
    ranks.share_batch_statistics(network)
    kinds = {
        type(m) for m in network.modules() if isinstance(m, torch.nn.modules.batchnorm._NormBase)
    }
    assert kinds == {torch.nn.SyncBatchNorm, Derived, timm.layers.norm_act.SyncBatchNormAct}
    assert [m.act for m in network.modules() if hasattr(m, "act")] == activations
    assert {name: t.data_ptr() for name, t in network.state_dict().items()} == before


def test_devices_must_be_there(config, monkeypatch):
    """More ranks than GPUs, or than images of a batch, are refused with both numbers."""
    project = load_project(config, ["student.devices=3", "runtime.device=cuda"])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match=r"(?s)visible GPUs \(1\), got 3.*images \(2\), got 3"):
        check_devices(project, 2)
    with pytest.raises(ConfigError, match=r"batch_size / views_per_image = 7\), got 8"):
        load_project(config, ["student.devices=8"])
