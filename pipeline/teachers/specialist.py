"""Training a specialist that comes without weights, on its own rows and human labels.

One whose labels are to be softmax probabilities learns by cross-entropy. One whose labels are to be
sigmoid probabilities learns by binary cross-entropy on each image's class and its is-a ancestors,
and starts from a small probability for every class.

It uses the same `fit` as the student. Its views are drawn beyond the stored ones, so that it is
not asked later to label the very pixels it was trained on.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.config import HardLabels, MultiLabel, Project
from pipeline.data import open_source
from pipeline.data.epoch_order import BatchOrder
from pipeline.data.loader import BatchDataset
from pipeline.data.view_reader import ViewReader
from pipeline.models.builders import build_classifier, probe
from pipeline.models.heads import start_rare
from pipeline.models.weights import save_weights
from pipeline.objectives import build_objective
from pipeline.objectives.base import LabelContext, StudentOutput
from pipeline.objectives.method import Stage
from pipeline.objectives.stored_signals import StoredSignals
from pipeline.teachers.spec import TeacherSpec
from pipeline.training.fit import StepReport, fit, pick_device
from pipeline.workspace import write_record
from storage_schemas.errors import DataError
from storage_schemas.manifest import TRAIN, Manifest

# Far above any stored view number, far below the limit of the view counter.
TRAINING_VIEWS_START = 1 << 20


class _AsStudent(nn.Module):
    """A plain classifier in the shape that the loop expects."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> StudentOutput:
        logits = self.classifier(images)
        return StudentOutput(logits=logits, features=logits)


def train_specialist(
    project: Project, spec: TeacherSpec, manifest: Manifest, *, report: StepReport | None = None
) -> dict[str, object]:
    """Train one specialist and write `weights.safetensors` and `record.json` to its folder.

    Returns:
        The record without what it was trained from: steps, seconds, rows, images a second.

    Raises:
        DataError: If it has no training rows.
        TrainingError: If the loss is not finite.
    """
    assert spec.folder is not None
    rows = manifest.rows(TRAIN, support=spec.label_map.support)
    if len(rows) == 0:
        raise DataError(
            f"teachers.{spec.name}: weights are null, and no training image has one of its "
            f"{len(spec.label_map)} classes; give weights, or images of these classes"
        )
    config = spec.training
    torch.manual_seed(config.seed)
    network = build_classifier(spec.config.builder, len(spec.label_map), spec.config.builder_args)
    probe(network, spec.config.input, len(spec.label_map), owner=f"teachers.{spec.name}")
    local = np.append(spec.label_map.to_local(spec.num_classes), -1)
    reader = ViewReader(
        open_source(project.data, project.workspace),
        manifest.keys,
        project.views.model_copy(update={"mix": None}),
        spec.config.input,
    )
    signals = StoredSignals(local[manifest.labels])
    sigmoid = project.labels.activation == "sigmoid"
    if sigmoid:
        start_rare(network, len(spec.label_map))
    objective = build_objective(
        MultiLabel(name="multi_label")
        if sigmoid
        else HardLabels(name="hard_labels", label_smoothing=config.label_smoothing),
        LabelContext(
            num_classes=len(spec.label_map),
            vertical_of=torch.zeros(len(spec.label_map), dtype=torch.int64),
            supports=(),
            closure=None if spec.closure is None else torch.from_numpy(spec.closure),
        ),
    )
    stage = Stage(name=f"specialist {spec.name}", objective=objective, epochs=config.epochs)
    stage.check_signals(signals.provides)
    result = fit(
        _AsStudent(network),
        stage,
        BatchDataset(reader.read, signals.fetch),
        BatchOrder(
            rows=rows,
            batch_size=config.batch_size,
            views=1,
            seed=config.seed,
            first_view=TRAINING_VIEWS_START,
            fresh_views=True,
        ),
        config,
        spec.folder,
        device=pick_device(project.runtime.device),
        num_workers=project.runtime.num_workers,
        report=report,
    )
    assert isinstance(result.model, _AsStudent)
    save_weights(result.model.classifier, spec.weights)
    record: dict[str, object] = {
        "teacher": spec.name,
        "rows": len(rows),
        "classes": len(spec.label_map),
        "steps": result.steps,
        "seconds": round(result.seconds, 3),
        "images_per_second": round(result.images / max(result.seconds, 1e-9), 1),
    }
    write_record(spec.folder / "record.json", record | {"parts": dict(spec.training_parts)})
    return record
