"""The stages of a method, one after another.

In: where each stage keeps its checkpoints, what one stage hands to the next, and progress over
all of them. Left out: the loop itself (fit.py).

A method of one stage lives in the run's folder; those of several have `stages/<number>-<name>/`
there. A run that was killed starts with the first stage again, whose newest checkpoint says that
it is finished, so that only the stage that was interrupted has steps to take.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from pipeline.config import StudentConfig, TrainingConfig
from pipeline.data.epoch_order import BatchOrder
from pipeline.data.loader import BatchDataset
from pipeline.models.student import Student
from pipeline.objectives.method import Method
from pipeline.training.fit import FitResult, StepReport, fit


def fit_stages(
    method: Method,
    dataset: BatchDataset,
    order: BatchOrder,
    config: StudentConfig,
    folder: Path,
    *,
    device: torch.device,
    num_workers: int = 0,
    report: StepReport | None = None,
) -> FitResult:
    """Train every stage of a method, each from its newest checkpoint where there is one.

    Args:
        method: Its network and stages.
        dataset: Batches by (rows, views).
        order: Of a plain epoch; a stage may change it.
        config: Of the student.
        folder: Of the run.
        device: Where to train.
        num_workers: Loader processes.
        report: Called after each step with (steps done, all steps, latest values) of all stages.

    Returns:
        The kept student, and the sums over all stages.

    Raises:
        TrainingError: As `fit`.
        StoreError: As `fit`.
    """
    orders = [stage.order(order) for stage in method.stages]
    steps = [
        stage.epochs * order.steps_per_epoch
        for stage, order in zip(method.stages, orders, strict=True)
    ]
    network, results = method.network, []
    for index, stage in enumerate(method.stages):
        before = sum(steps[:index])

        def count(step: int, total: int, values: Mapping[str, float], before: int = before) -> None:
            if report is not None:
                report(before + step, sum(steps), values)

        if isinstance(network, Student):
            network.tap(stage.objective.taps)
        training: TrainingConfig = stage.training or config
        result = fit(
            network,
            stage,
            dataset,
            orders[index],
            training,
            folder if len(steps) == 1 else folder / "stages" / f"{index}-{stage.name}",
            device=device,
            num_workers=num_workers,
            report=count,
        )
        results.append(result)
        network = stage.finish(result.model)
    student = method.student(network)
    if isinstance(student, Student):
        student.tap(())
    return replace(
        results[-1],
        model=student.eval(),
        steps=sum(steps),
        resumed_from=_resumed_from(results, steps),
        seconds=sum(result.seconds for result in results),
        images=sum(result.images for result in results),
    )


def _resumed_from(results: list[FitResult], steps: list[int]) -> int:
    """Return how many steps of all stages were done before this call."""
    done = 0
    for result, total in zip(results, steps, strict=True):
        done += result.resumed_from
        if result.resumed_from < total:
            break
    return done
