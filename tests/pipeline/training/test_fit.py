"""The training loop: resume, averaging, logging, refusals."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pipeline import locations
from pipeline.config import (
    AdamWConfig,
    HardLabels,
    SGDConfig,
    SoftLabels,
    TrainingConfig,
)
from pipeline.data.epoch_order import BatchOrder
from pipeline.data.loader import BatchDataset
from pipeline.objectives import build_objective
from pipeline.objectives.base import LabelContext, StudentOutput, TargetBatch
from pipeline.objectives.method import Stage
from pipeline.store.lock import writer_lock
from pipeline.training.checkpoints import load_newest_checkpoint, save_checkpoint
from pipeline.training.fit import fit
from pipeline.training.metrics_log import read_metrics
from storage_schemas.errors import StoreError, TrainingError

CLASSES = 5
on_both = pytest.mark.parametrize("location", ["local", "s3"], indirect=True)


class TinyStudent(nn.Module):
    """Convolution, batch norm and dropout: everything that a resume can get wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.dropout = nn.Dropout(0.3)
        self.fc = nn.Linear(4, CLASSES)

    def forward(self, images):
        features = self.norm(self.conv(images)).relu().mean(dim=(2, 3))
        return StudentOutput(logits=self.fc(self.dropout(features)), features=features)


def read_images(rows, views):
    """Images as a function of row and view."""
    generator = torch.Generator()
    images = []
    for row, view in zip(rows.tolist(), views.tolist(), strict=True):
        generator.manual_seed(row * 1000 + view)
        image = torch.randn(1, 8, 8, generator=generator)
        images.append(image + (row % CLASSES))
    return torch.stack(images)


def fetch_targets(rows, views):
    """The class of a row is its number modulo the classes."""
    return TargetBatch(labels=torch.from_numpy(rows % CLASSES))


def make_stage(epochs=3, config=None):
    """A stage of hard labels."""
    context = LabelContext(
        num_classes=CLASSES, vertical_of=torch.zeros(CLASSES, dtype=torch.int64), supports=()
    )
    objective = build_objective(config or HardLabels(name="hard_labels"), context)
    return Stage(name="student", objective=objective, epochs=epochs)


def run_fit(folder, *, epochs=3, config=None, read=read_images, report=None, num_workers=0):
    """Train a tiny student from fixed weights."""
    torch.manual_seed(1)
    model = TinyStudent()
    order = BatchOrder(rows=np.arange(60, dtype=np.int64), batch_size=10, views=2, seed=3)
    config = config or TrainingConfig(
        ema_decay=0.9, clip_norm=1.0, checkpoint_every_steps=4, log_every_steps=2
    )
    result = fit(
        model,
        make_stage(epochs),
        BatchDataset(read, fetch_targets),
        order,
        config,
        locations.location(folder),
        device=torch.device("cpu"),
        num_workers=num_workers,
        report=report,
    )
    return model, result


def weights_of(model, result):
    """All tensors of the model and of its average."""
    return [t.clone() for t in (*model.state_dict().values(), *result.model.state_dict().values())]


KILLED = """
    import importlib.util, os, signal, sys
    spec = importlib.util.spec_from_file_location("test_fit", {file!r})
    module = importlib.util.module_from_spec(spec)
    sys.modules["test_fit"] = module
    spec.loader.exec_module(module)
    module.torch.set_num_threads({threads})

    def report(step, total, values):
        print(step, flush=True)
        if step == {kill_at}:
            os.kill(os.getpid(), signal.SIGKILL)

    module.run_fit({folder!r}, report=report)
"""


@pytest.mark.parametrize(
    ("location", "kill_at"),
    [("local", 2), ("local", 4), ("local", 11), ("s3", 11)],
    indirect=["location"],
)
def test_killed_run_ends_with_the_same_weights(location, tmp_path, monkeypatch, kill_at):
    """A run that is killed with SIGKILL and resumed ends bitwise like one that was not.

    In a bucket, also where nothing of the first machine's disk is left.
    """
    whole = weights_of(*run_fit(tmp_path / "whole"))
    script = KILLED.format(
        file=__file__,
        folder=str(location / "killed"),
        kill_at=kill_at,
        threads=torch.get_num_threads(),
    )
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert process.stdout.split()[-1] == str(kill_at)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
    model, result = run_fit(location / "killed")
    assert result.resumed_from == kill_at // 4 * 4
    steps = [row["step"] for row in read_metrics(location / "killed" / "metrics.csv")]
    assert steps == sorted(set(steps))
    assert {1, 18} <= set(steps)
    for mine, other in zip(weights_of(model, result), whole, strict=True):
        assert torch.equal(mine, other)


def test_resumed_log_has_each_step_once(tmp_path):
    """The metrics of a resumed run equal those of an undisturbed one, step by step."""
    run_fit(tmp_path / "whole")
    stop = {"at": 11}

    def report(step, total, values):
        if step == stop["at"]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_fit(tmp_path / "stopped", report=report)
    run_fit(tmp_path / "stopped")
    whole = {row["step"]: row["loss"] for row in read_metrics(tmp_path / "whole/metrics.csv")}
    again = [(row["step"], row["loss"]) for row in read_metrics(tmp_path / "stopped/metrics.csv")]
    assert [step for step, _ in again] == sorted({step for step, _ in again})
    for step, loss in again:
        if step in whole:
            assert loss == whole[step]


@on_both
def test_finished_run_does_not_train_again(location):
    """Calling fit on a finished run changes nothing."""
    first = weights_of(*run_fit(location))
    model, result = run_fit(location)
    assert result.resumed_from == result.steps
    for mine, other in zip(weights_of(model, result), first, strict=True):
        assert torch.equal(mine, other)


def test_workers_do_not_change_the_result(tmp_path):
    """Loader processes give the same weights as none."""
    alone = weights_of(*run_fit(tmp_path / "0", epochs=1))
    helped = weights_of(*run_fit(tmp_path / "2", epochs=1, num_workers=2))
    for mine, other in zip(alone, helped, strict=True):
        assert torch.equal(mine, other)


def test_learns(tmp_path):
    """The loss falls on data that can be learnt."""
    config = TrainingConfig(optimizer=AdamWConfig(lr=0.03), log_every_steps=1)
    run_fit(tmp_path, epochs=20, config=config)
    losses = [row["loss"] for row in read_metrics(tmp_path / "metrics.csv")]
    assert np.mean(losses[-6:]) < 0.6 * np.mean(losses[:6])


def test_tensorboard_files_are_written(tmp_path):
    """Scalars go to TensorBoard beside the CSV file."""
    run_fit(tmp_path, epochs=1)
    assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))


def test_loss_that_is_not_finite_stops_with_its_steps(tmp_path):
    """A NaN loss names the interval of steps, and no checkpoint of it is kept."""

    def poisoned(rows, views):
        images = read_images(rows, views)
        return images * float("nan") if 7 in rows else images

    config = TrainingConfig(log_every_steps=1, checkpoint_every_steps=1)
    with pytest.raises(TrainingError, match=r"loss must be finite, got nan within steps \d+ to"):
        run_fit(tmp_path, config=config, read=poisoned)
    state = load_newest_checkpoint(tmp_path / "checkpoints", map_location=torch.device("cpu"))
    if state is not None:
        assert all(torch.isfinite(t).all() for t in state["model"].values())


def test_objective_that_lacks_a_signal_is_refused_before_training():
    """A source without soft labels is refused, and the message says what to run."""
    stage = make_stage(config=SoftLabels(name="soft_labels"))
    with pytest.raises(TrainingError, match=r"\['soft'\] missing; run `concentrate label`"):
        stage.check_signals(frozenset({"labels"}))


@on_both
def test_damaged_newest_checkpoint_falls_back_to_the_one_before(location):
    """The newest readable checkpoint is used; if none can be read, that is said."""
    save_checkpoint(location, 1, {"step": 1}, keep=5)
    newest = save_checkpoint(location, 2, {"step": 2}, keep=5)
    newest.write_bytes(newest.read_bytes()[:50])
    device = torch.device("cpu")
    assert load_newest_checkpoint(location, map_location=device) == {"step": 1}
    (location / "step-000000001.pt").write_bytes(b"")
    with pytest.raises(TrainingError, match="no checkpoint can be read"):
        load_newest_checkpoint(location, map_location=device)


@on_both
def test_only_the_newest_checkpoints_are_kept(location):
    """Old checkpoints are removed, and no temporary file is left."""
    for step in range(1, 6):
        save_checkpoint(location, step, {"step": step}, keep=2)
    names = sorted(path.name for path in location.iterdir())
    assert names == ["step-000000004.pt", "step-000000005.pt"]


def test_sgd_trains(tmp_path):
    """SGD with momentum runs through the same loop."""
    config = TrainingConfig(optimizer=SGDConfig(name="sgd", lr=0.05), log_every_steps=1)
    run_fit(tmp_path, epochs=10, config=config)
    losses = [row["loss"] for row in read_metrics(tmp_path / "metrics.csv")]
    assert math.isfinite(losses[-1])
    assert np.mean(losses[-6:]) < np.mean(losses[:6])


def test_bfloat16_autocast_trains_on_a_cpu(tmp_path):
    """Mixed precision runs on a CPU and keeps the loss finite."""
    config = TrainingConfig(precision="bfloat16", log_every_steps=1)
    run_fit(tmp_path, epochs=1, config=config)
    assert all(math.isfinite(row["loss"]) for row in read_metrics(tmp_path / "metrics.csv"))


def test_second_trainer_of_a_run_is_refused(tmp_path):
    """Two processes do not train in one folder: the second is told who is there."""
    with writer_lock(tmp_path / "run"), pytest.raises(StoreError, match="is being written by"):
        run_fit(tmp_path / "run")
