"""What a training step from the store costs against the same step with hard labels.

Same student, rows, views and loader in one process, in turn; only the targets and the loss differ.

    python benchmarks/step_overhead.py
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from itertools import islice

import torch
from measure import interleaved, median_ratio, record
from stages import DEMO, labelled_project

from pipeline.config import HardLabels, Project
from pipeline.data import open_source
from pipeline.data.epoch_order import BatchOrder
from pipeline.data.loader import BatchDataset, batch_loader
from pipeline.data.view_reader import ViewReader
from pipeline.models.student import build_student
from pipeline.objectives import build_objective
from pipeline.objectives.base import total_loss
from pipeline.objectives.stored_signals import StoredSignals
from pipeline.store.published import PublishedLabels, open_published
from pipeline.training.optimization import build_optimizer
from pipeline.training.runs import training_rows
from pipeline.training.students import label_context
from storage_schemas.label_space import LabelSpace
from storage_schemas.manifest import TRAIN, Manifest


def steps_of(
    project: Project,
    manifest: Manifest,
    space: LabelSpace,
    published: PublishedLabels,
    *,
    from_store: bool,
    count: int,
) -> Callable[[], None]:
    """Return a function that trains for some steps."""
    config = project.student
    torch.manual_seed(0)
    student = build_student(config, space)
    objective = build_objective(
        config.objective if from_store else HardLabels(name="hard_labels"),
        label_context(space, published, manifest.labels, student.feature_dim),
    )
    optimizer = build_optimizer(config.optimizer, (student, objective))
    reader = ViewReader(
        open_source(project.data, project.workspace), manifest.keys, project.views, config.input
    )
    rows = training_rows(manifest, published)
    signals = StoredSignals(
        manifest.labels,
        stores=published.stores if from_store else (),
        routes=published.routes if from_store else None,
        temperature=config.objective.label_temperature if from_store else 1.0,
        held_rows=rows if from_store else None,
    )
    order = BatchOrder(
        rows=rows,
        batch_size=config.batch_size,
        views=project.views.count,
        seed=0,
    )

    def train() -> None:
        loader = batch_loader(BatchDataset(reader.read, signals.fetch), order, epochs=100)
        for batch in islice(loader, count):
            loss = total_loss(objective(student(batch.images), batch.targets))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    return train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        labelled = labelled_project(DEMO, [f"workspace={folder}", "specialists.epochs=1"])
        project, manifest, space = labelled.project, labelled.manifest, labelled.space
        published = open_published(project, space, manifest, TRAIN)
        cases = {
            name: steps_of(
                project,
                manifest,
                space,
                published,
                from_store=name == "store",
                count=arguments.steps,
            )
            for name in ("store", "hard")
        }
        seconds = interleaved(cases, rounds=arguments.rounds)
    record(
        "step_overhead",
        {
            "objective": project.student.objective.model_dump(mode="json"),
            "classes": len(space),
            "batch_size": project.student.batch_size,
            "milliseconds_per_step": {
                name: [round(1000 * value / arguments.steps, 2) for value in times]
                for name, times in seconds.items()
            },
            "ratio_store_to_hard": median_ratio(seconds, "store", "hard"),
        },
    )


if __name__ == "__main__":
    main()
