"""Training a student, and its control, from published label stores alone.

In: the batches and targets of a run (runs.py), the call of `fit`, and what a finished run leaves
behind: `weights.safetensors` and `student.json`, which are all that `predict` needs. Left
out: teachers; nothing here imports `pipeline.teachers`, and a test holds that.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pipeline.config import Project, StudentConfig
from pipeline.data import open_source
from pipeline.data.epoch_order import BatchOrder
from pipeline.data.loader import BatchDataset
from pipeline.data.routing import mix_pools, mixing_problems
from pipeline.data.view_reader import ViewReader
from pipeline.models.student import build_student
from pipeline.models.weights import save_weights
from pipeline.objectives import MethodInputs, build_method
from pipeline.objectives.base import LabelContext
from pipeline.objectives.stored_signals import StoredSignals
from pipeline.store.published import PublishedLabels
from pipeline.training.fit import StepReport, pick_device
from pipeline.training.fit_stages import fit_stages
from pipeline.training.initial_weights import initial_weights
from pipeline.training.ranks import rank_and_size
from pipeline.training.runs import StudentRun, training_rows
from pipeline.workspace import write_record
from storage_schemas.errors import ConfigError, DataError, TrainingError
from storage_schemas.hierarchy import label_closure
from storage_schemas.label_space import LabelSpace
from storage_schemas.manifest import TRAIN, UNLABELLED, Manifest


def _signals(
    run: StudentRun,
    manifest: Manifest,
    published: PublishedLabels,
    reader: ViewReader,
    held_rows: np.ndarray | None,
) -> StoredSignals:
    mix_weights = reader.mix_weights if reader.recipe.mix is not None else None
    if not run.config.objective.reads:
        return StoredSignals(manifest.labels, mix_weights=mix_weights)
    labels = manifest.labels
    if run.config.objective.hides_labels:
        labels = np.full_like(labels, UNLABELLED)
    return StoredSignals(
        labels,
        stores=published.stores,
        routes=published.routes,
        temperature=run.config.objective.label_temperature,
        mix_weights=mix_weights,
        held_rows=held_rows,
        held_views=None if published.available is None else published.available.views,
        features=published.features if "features" in run.config.objective.reads else None,
    )


def label_context(
    space: LabelSpace,
    published: PublishedLabels,
    labels: np.ndarray,
    feature_dim: int,
    total_steps: int = 0,
) -> LabelContext:
    """Return what an objective sees of the label space, the teachers and the student.

    Args:
        space: All classes.
        published: The teachers' stores.
        labels: (N,) hard labels of the training rows; -1: unlabelled.
        feature_dim: Width of the student's features.
        total_steps: Of the run.
    """
    counts = np.bincount(labels[labels >= 0], minlength=len(space)).astype(np.int64)
    return LabelContext(
        num_classes=len(space),
        vertical_of=torch.from_numpy(space.vertical_of.astype(np.int64)),
        supports=tuple(torch.from_numpy(store.label_map.support) for store in published.stores),
        teachers=published.names,
        class_counts=torch.from_numpy(counts),
        feature_dim=feature_dim,
        features=published.feature_shapes,
        total_steps=total_steps,
        closure=torch.from_numpy(label_closure(space)) if space.parents else None,
    )


def _reader(
    project: Project, config: StudentConfig, manifest: Manifest, published: PublishedLabels
) -> ViewReader:
    pools = None
    if project.views.mix is not None:
        if published.routes is None:
            raise ConfigError("views.mix", ["mixing needs teachers, and the project has no labels"])
        problems = mixing_problems(published.names, published.routes)
        if problems:
            raise ConfigError("views.mix", problems)
        pools = mix_pools(manifest, TRAIN, published.routes)
    source = open_source(project.data, project.workspace)
    return ViewReader(source, manifest.keys, project.views, config.input, pools)


def _window_shard_rows(
    run: StudentRun, manifest: Manifest, published: PublishedLabels
) -> int | None:
    """Rows of a shard where labels or features must be streamed; None where all fit in memory."""
    if not run.config.objective.reads:
        return None
    budget = run.config.memory_budget_mb << 20
    if published.held_bytes(manifest, TRAIN) > budget:
        return max(store.schema.shard_rows for store in published.stores)
    reads_features = "features" in run.config.objective.reads
    if reads_features and published.feature_bytes(manifest, TRAIN) > budget:
        return max(store.schema.shard_rows for store in published.features.values())
    return None


def train_student(
    project: Project,
    run: StudentRun,
    space: LabelSpace,
    manifest: Manifest,
    published: PublishedLabels,
    *,
    report: StepReport | None = None,
) -> dict[str, Any]:
    """Train one run to its end, from its newest checkpoint where there is one.

    Where a process group is initialised, all its ranks call this alike, and rank 0 writes.

    Returns:
        The record written to `student.json`.

    Raises:
        DataError: If there are no training rows.
        TrainingError: If a signal is missing, the loss is not finite, or the batches are to be
            made of classes and no image has one.
        MissingLabelError: If a label that the run needs has not been written.
    """
    config = run.config
    rows = training_rows(manifest, published)
    if len(rows) == 0:
        raise DataError("no training row has a published label; run `concentrate label` first")
    classes = manifest.labels[rows].astype(np.int64)
    if config.samples_per_class is not None and not (classes >= 0).any():
        raise TrainingError(
            "student.samples_per_class needs hard labels, got none: sort the images into class "
            "folders, or leave it out"
        )
    reader = _reader(project, config, manifest, published)
    shard_rows = _window_shard_rows(run, manifest, published)
    signals = _signals(
        run, manifest, published, reader, held_rows=rows if shard_rows is None else None
    )
    rank, world_size = rank_and_size()
    order = BatchOrder(
        rows=rows,
        batch_size=config.batch_size,
        views=project.views.count,
        seed=config.seed,
        views_per_image=config.views_per_image,
        rank=rank,
        world_size=world_size,
        shard_rows=shard_rows,
        available=None if published.available is None else published.available.views,
        classes=classes,
        samples_per_class=config.samples_per_class or 1,
    )
    torch.manual_seed(config.seed)
    student = build_student(config, space)
    if config.init is not None:
        initial_weights(project, published, config.init).copy_into(student)
    context = label_context(
        space,
        published,
        manifest.labels[rows],
        student.feature_dim,
        total_steps=config.epochs * order.steps_per_epoch,
    )
    method = build_method(
        MethodInputs(
            config=config,
            student=student,
            context=context,
            signals=signals,
            rows=rows,
            views=project.views.count,
        ),
        run.role,
    )
    for stage in method.stages:
        stage.check_signals(signals.provides)
    dataset = BatchDataset(reader.read, signals.fetch, signals.stream)
    result = fit_stages(
        method,
        dataset,
        order,
        config,
        run.folder,
        device=pick_device(project.runtime.device),
        num_workers=project.runtime.num_workers,
        report=report,
    )
    record: dict[str, Any] = {
        "role": run.role,
        "fingerprint": run.fingerprint,
        "parts": run.parts,
        "student": config.model_dump(mode="json"),
        "label_space": space.to_dict(),
        "teachers": list(published.names),
        "steps": result.steps,
        "rows": len(rows),
        "labels": published.coverage(),
        "resumed_from": result.resumed_from,
        "seconds": round(result.seconds, 3),
        "images_per_second": round(result.images / max(result.seconds, 1e-9), 1),
        "versions": {"torch": torch.__version__},
    }
    structure = getattr(result.model, "structure", {})
    if structure:
        record["structure"] = {name: list(widths) for name, widths in structure.items()}
    if rank == 0:
        save_weights(result.model, run.weights)
        write_record(run.folder / "student.json", record)
    return record
