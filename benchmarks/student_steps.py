"""One training step of a project's student as the loop makes it, to be timed one by one.

A step takes the next batch of the loader, forward, loss, backward, optimizer. Two such functions go
through the same rows and views in the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from stages import Labelled

from pipeline.config import HardLabels, StudentConfig
from pipeline.data import open_source
from pipeline.data.epoch_order import BatchOrder, Rows
from pipeline.data.loader import Batch, BatchDataset, batch_loader
from pipeline.data.view_reader import ViewReader
from pipeline.models.student import build_student
from pipeline.objectives import build_objective
from pipeline.objectives.base import TargetBatch, total_loss
from pipeline.objectives.method import Stage
from pipeline.objectives.stored_signals import StoredSignals
from pipeline.store.published import PublishedLabels
from pipeline.training.loss_terms import build_loss_terms
from pipeline.training.optimization import build_optimizer
from pipeline.training.runs import training_rows
from pipeline.training.students import label_context


class StudentSteps:
    """A student with its optimizer and its loader.

    Args:
        made: The project and its labels.
        published: Its stores.
        from_store: Train on the stored labels with the project's objective; else on hard labels.
        fetch: (rows, views) -> TargetBatch, in place of the stores' own.
        config: Of the student, in place of the project's.
        device: Where it trains.
        num_workers: Processes that read images.
    """

    def __init__(
        self,
        made: Labelled,
        published: PublishedLabels,
        *,
        from_store: bool,
        fetch: Callable[[Rows, Rows], TargetBatch] | None = None,
        config: StudentConfig | None = None,
        device: torch.device | str = "cpu",
        num_workers: int = 0,
    ) -> None:
        config = made.project.student if config is None else config
        self.device = device
        torch.manual_seed(0)
        student = build_student(config, made.space)
        context = label_context(made.space, published, made.manifest.labels, student.feature_dim)
        objective = build_objective(
            config.objective if from_store else HardLabels(name="hard_labels"), context
        )
        stage = Stage(name="student", objective=objective, epochs=1)
        self.terms = build_loss_terms(student, stage, config).to(device).train()
        self.optimizer = build_optimizer(config.optimizer, (student, objective))
        source = open_source(made.project.data, made.project.workspace)
        reader = ViewReader(source, made.manifest.keys, made.project.views, config.input)
        rows = training_rows(made.manifest, published)
        stored = partial(
            StoredSignals,
            stores=published.stores,
            routes=published.routes,
            temperature=config.objective.label_temperature,
            held_rows=rows,
        )
        signals = (stored if from_store else StoredSignals)(made.manifest.labels)
        order = BatchOrder(
            rows=rows,
            batch_size=config.batch_size,
            views=made.project.views.count,
            seed=0,
        )
        dataset = BatchDataset(
            reader.read, fetch or signals.fetch, signals.stream if fetch is None else None
        )
        loader = batch_loader(
            dataset,
            order,
            epochs=10_000,
            num_workers=num_workers,
            pin_memory=torch.device(device).type == "cuda",
        )
        self.batches = iter(loader)

    def step(self) -> None:
        """Train on the next batch."""
        self.train(next(self.batches))

    def train(self, batch: Batch, targets: TargetBatch | None = None) -> None:
        """Train on a batch; `targets` stand in for its own."""
        targets = batch.targets if targets is None else targets
        images = batch.images.to(self.device, non_blocking=True)
        self.optimizer.zero_grad(set_to_none=True)
        terms = self.terms(images, targets.to(self.device, non_blocking=True))
        total_loss(terms).backward()
        self.optimizer.step()
