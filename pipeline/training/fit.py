"""The one training loop: specialists, students and controls all go through `fit`.

In: a stage over a loader with autocast, clipping, weight averaging, logging, checkpoints and
resume at the exact step. Left out: what is trained on what (students.py, teachers). On a CPU a
run that was killed and resumed ends with bitwise the same weights as one that was not: the
batches are a function of the step, and the checkpoint holds everything else. That needs the same
number of threads, since sums over threads are rounded in another order. Several ranks (ranks.py)
share each batch: each runs this loop, and rank 0 alone writes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from pipeline.config import TrainingConfig
from pipeline.data.epoch_order import BatchOrder
from pipeline.data.loader import Batch, BatchDataset, batch_loader
from pipeline.objectives.base import total_loss
from pipeline.objectives.method import Stage
from pipeline.store.lock import writer_lock
from pipeline.training.checkpoints import load_newest_checkpoint, save_checkpoint
from pipeline.training.loss_terms import build_loss_terms, compiler_errors
from pipeline.training.metrics_log import MetricsLog
from pipeline.training.optimization import build_average, build_optimizer, build_schedule
from pipeline.training.ranks import (
    average_gradients,
    check_same_step,
    mean_over_ranks,
    seed_step,
    share_batch_statistics,
    wait_for_all,
)
from storage_schemas.errors import TrainingError

StepReport = Callable[[int, int, Mapping[str, float]], None]


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """How a stage went.

    Attributes:
        model: The weights to use: the average where there is one.
        steps: All steps of the stage.
        resumed_from: The step a checkpoint was found at; 0 for a fresh run.
        seconds: Wall time in the loop, of all starts.
        images: Images trained on, of all starts.
    """

    model: nn.Module
    steps: int
    resumed_from: int
    seconds: float
    images: int


def pick_device(name: str) -> torch.device:
    """Return the device of the settings; `auto` is a GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


class _Run:
    """Everything of a stage that a checkpoint must hold."""

    def __init__(
        self, model: nn.Module, stage: Stage, config: TrainingConfig, total_steps: int
    ) -> None:
        self.model, self.objective = model, stage.objective
        self.optimizer = build_optimizer(config.optimizer, (model, stage.objective))
        self.schedule: LambdaLR = build_schedule(config.schedule, self.optimizer, total_steps)
        self.average: AveragedModel | None = build_average(model, config.ema_decay)
        self.terms = average_gradients(build_loss_terms(model, stage, config))
        self.started = time.perf_counter()
        self.seconds_before = 0.0

    @property
    def seconds(self) -> float:
        """Wall time of all starts until now."""
        return self.seconds_before + time.perf_counter() - self.started

    def state(self, step: int) -> dict[str, Any]:
        state: dict[str, Any] = {
            "step": step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": {"last_epoch": self.schedule.last_epoch},
            "random": torch.get_rng_state(),
        }
        if self.average is not None:
            state["average"] = self.average.state_dict()
        if torch.cuda.is_available():
            state["random_cuda"] = torch.cuda.get_rng_state_all()
        return state

    def load(self, state: Mapping[str, Any]) -> int:
        self.seconds_before = float(state["seconds"])
        self.model.load_state_dict(state["model"])
        self.objective.load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.last_epoch = state["schedule"]["last_epoch"]
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        torch.set_rng_state(state["random"].cpu())
        if "random_cuda" in state and torch.cuda.is_available():
            here = state["random_cuda"][: torch.cuda.device_count()]
            torch.cuda.set_rng_state_all([s.cpu() for s in here])
        return int(state["step"])


def _set_trainable(model: nn.Module, prefixes: tuple[str, ...]) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(prefixes))


def fit(
    model: nn.Module,
    stage: Stage,
    dataset: BatchDataset,
    order: BatchOrder,
    config: TrainingConfig,
    folder: Path,
    *,
    device: torch.device,
    num_workers: int = 0,
    report: StepReport | None = None,
) -> FitResult:
    """Train one stage, from its newest checkpoint where there is one.

    Args:
        model: Returns a `StudentOutput` for (B, channels, S, S) images; changed in place.
        stage: Objective, epochs and trained parameters.
        dataset: Batches by (rows, views).
        order: Which batches, in which order; its rank and world size are those of the process
            group, whose ranks all call `fit` alike.
        config: Optimizer, schedule, precision, cadences.
        folder: Of the run; receives `checkpoints/`, `metrics.csv` and, on a disk, `tensorboard/`.
        device: Where to train.
        num_workers: Loader processes.
        report: Called after each step with (steps done, all steps, latest values of all ranks).

    Raises:
        TrainingError: If the loss is not finite, no checkpoint can be read, or torch.compile fails.
        StoreError: If another process trains in the same folder, or has taken its lock over.
    """
    # Rank 0 writes for all of them.
    lock = writer_lock(folder) if order.rank == 0 else contextlib.nullcontext(lambda: None)
    with lock as check_lock:
        wait_for_all()
        return _fit_alone(
            model,
            stage,
            dataset,
            order,
            config,
            folder,
            device,
            num_workers,
            report,
            check_lock,
        )


def _fit_alone(
    model: nn.Module,
    stage: Stage,
    dataset: BatchDataset,
    order: BatchOrder,
    config: TrainingConfig,
    folder: Path,
    device: torch.device,
    num_workers: int,
    report: StepReport | None,
    check_lock: Callable[[], None],
) -> FitResult:
    total_steps = stage.epochs * order.steps_per_epoch
    model.to(device)
    stage.objective.to(device)
    _set_trainable(model, stage.trains)
    if device.type == "cuda":
        share_batch_statistics(model)
    torch.manual_seed(config.seed)
    run = _Run(model, stage, config, total_steps)
    if run.average is not None:
        run.average.to(device)
    checkpoints = folder / "checkpoints"
    found = load_newest_checkpoint(checkpoints, map_location=device)
    first_step = run.load(found) if found is not None else 0
    check_same_step(first_step)
    loader = batch_loader(
        dataset,
        order,
        epochs=stage.epochs,
        first_step=first_step,
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
    )
    started = time.perf_counter()
    images_per_step = order.images_per_batch * order.views_per_image
    writes = order.rank == 0
    step = first_step
    model.train()
    stage.objective.train()
    with MetricsLog(folder, first_step=first_step) if writes else contextlib.nullcontext() as log:
        values: dict[str, float] = {}
        for batch in loader:
            seed_step(config.seed, step)
            terms = _step(run, batch, config, device)
            step += 1
            last = step == total_steps
            if step % config.log_every_steps == 0 or last or step == first_step + 1:
                images = (step - first_step) * images_per_step
                values = _values(terms, run, images / (time.perf_counter() - started))
                _check_finite(values, stage, step, config.log_every_steps)
                if log is not None:
                    log.write(step, {"epoch": step / order.steps_per_epoch} | values)
            if step % config.checkpoint_every_steps == 0 and not last:
                _check_finite(_values(terms, run, 0.0), stage, step, 1)
                if log is not None:
                    check_lock()
                    log.keep()
                    save_checkpoint(
                        checkpoints, step, run.state(step), keep=config.keep_checkpoints
                    )
            if report is not None:
                report(step, total_steps, values)
        if log is not None and step != first_step:
            check_lock()
            log.keep()
    if writes and step != first_step:
        save_checkpoint(checkpoints, step, run.state(step), keep=config.keep_checkpoints)
    final = model if run.average is None else run.average.module
    final.eval()
    return FitResult(
        model=final,
        steps=total_steps,
        resumed_from=first_step,
        seconds=run.seconds,
        images=total_steps * images_per_step,
    )


def _step(
    run: _Run, batch: Batch, config: TrainingConfig, device: torch.device
) -> dict[str, Tensor]:
    images = batch.images.to(device, non_blocking=True)
    targets = batch.targets.to(device, non_blocking=True)
    run.optimizer.zero_grad(set_to_none=True)
    with compiler_errors():
        terms = run.terms(images, targets)
        loss = total_loss(terms)
        loss.backward()  # type: ignore[no-untyped-call]
    if config.clip_norm is not None:
        parameters = [p for group in run.optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, config.clip_norm)
    run.optimizer.step()
    run.schedule.step()
    if run.average is not None:
        run.average.update_parameters(run.model)
    return {"loss": loss.detach(), **{name: term.detach() for name, term in terms.items()}}


def _values(terms: Mapping[str, Tensor], run: _Run, images_per_second: float) -> dict[str, float]:
    values = {name: float(term) for name, term in mean_over_ranks(terms).items()}
    metrics = getattr(run.model, "metrics", None)
    if metrics is not None:
        values.update(metrics())
    values["learning_rate"] = run.optimizer.param_groups[0]["lr"]
    values["images_per_second"] = images_per_second
    return values


def _check_finite(values: Mapping[str, float], stage: Stage, step: int, interval: int) -> None:
    loss = values["loss"]
    if loss != loss or loss in (float("inf"), float("-inf")):
        raise TrainingError(
            f"stage {stage.name!r}: loss must be finite, got {loss} within steps "
            f"{max(0, step - interval)} to {step}; lower the learning rate, set clip_norm, or use "
            "float32. The newest checkpoint is from before"
        )
