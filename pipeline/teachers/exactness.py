"""What a teacher's labels lost, measured on a sample of its rows that is labelled densely.

In: the sample, the dense run in memory, the record. Left out: the divergences themselves
(pipeline.numerics.exactness) and when it is done (flows).

The rows are test rows in the evaluation view, coded with the settings of the train store. A
teacher without test rows is measured on training rows.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.config import Project
from pipeline.data import open_source
from pipeline.data.routing import routed_rows, split_recipe
from pipeline.data.view_reader import ViewReader
from pipeline.numerics.exactness import (
    dense_log_probs,
    exact_label,
    sigmoid_loss,
    softmax_losses,
)
from pipeline.teachers.labelling import (
    LabelReport,
    checked_logits,
    coded,
    load_teacher,
)
from pipeline.teachers.row_batches import row_batches
from pipeline.teachers.spec import TeacherSpec
from pipeline.training.fit import pick_device
from pipeline.workspace import Workspace, write_record
from storage_schemas.exactness import Exactness, Lost, Spread
from storage_schemas.manifest import TEST, TRAIN, Manifest
from storage_schemas.soft_labels import SoftLabelSchema, decode

SAMPLE_ROWS = 512
PRECISIONS: tuple[Literal["compact", "exact"], ...] = ("compact", "exact")
# Of float64 in the dense answers: 32 MiB a tensor.
_ELEMENTS_AT_ONCE = 1 << 22


def sample_rows(
    manifest: Manifest, spec: TeacherSpec
) -> tuple[Literal["train", "test"], npt.NDArray[np.int64]]:
    """Return the split and up to `SAMPLE_ROWS` rows at even distances; none if it has no rows."""
    rows = routed_rows(manifest, TEST, spec.route)
    split: Literal["train", "test"] = "test" if len(rows) else "train"
    if split == "train":
        rows = routed_rows(manifest, TRAIN, spec.route)
    places = np.linspace(0, len(rows) - 1, min(len(rows), SAMPLE_ROWS)).round().astype(int)
    return split, rows[np.unique(places)]


def record_exactness(
    project: Project,
    spec: TeacherSpec,
    manifest: Manifest,
    schema: SoftLabelSchema,
    *,
    report: LabelReport | None = None,
) -> dict[str, Any] | None:
    """Measure what the labels of a teacher lose, and keep the record beside its stores.

    Returns:
        The record; None when the teacher has no rows.
    """
    found = measure_exactness(project, spec, manifest, schema, report=report)
    if found is None:
        return None
    record = found.model_dump(mode="json")
    write_record(Workspace(project.workspace).exactness(spec.name), record)
    return record


def measure_exactness(
    project: Project,
    spec: TeacherSpec,
    manifest: Manifest,
    schema: SoftLabelSchema,
    *,
    report: LabelReport | None = None,
) -> Exactness | None:
    """Label a sample densely and compare it with what the store would keep of it.

    Args:
        project: Its project.
        spec: The teacher, with weights.
        manifest: All rows.
        schema: Of its train store.
        report: Called with the number of rows after each batch.

    Returns:
        The record; None if the teacher has no rows at all.

    Raises:
        TeacherOutputError: On NaN, Inf or a wrong shape.
    """
    split, rows = sample_rows(manifest, spec)
    if len(rows) == 0:
        return None
    device = pick_device(project.runtime.device)
    teacher = load_teacher(spec, device)
    reader = ViewReader(
        open_source(project.data, project.workspace),
        manifest.keys,
        split_recipe(project, TEST),
        spec.config.input,
    )
    found: dict[float, list[dict[str, Tensor]]] = {t: [] for t in schema.temperatures}
    at_once = max(_ELEMENTS_AT_ONCE // schema.num_classes, 1)
    done = 0
    for images in row_batches(project, reader, spec, rows, [0], device):
        batch = rows[done : done + images.shape[1]]
        with torch.inference_mode():
            output = teacher(images[0].to(device, non_blocking=True))
            logits = checked_logits(output, spec, batch, 0).cpu()
            for start in range(0, len(batch), at_once):
                part = slice(start, start + at_once)
                for temperature, values in found.items():
                    values.append(compared(schema, logits[part], batch[part], temperature))
        done += len(batch)
        if report is not None:
            report(len(batch))
    joined = {
        temperature: {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        for temperature, parts in found.items()
    }
    return Exactness(
        fingerprint=schema.fingerprint,
        split=split,
        rows=len(rows),
        activation=schema.activation,
        selection=schema.selection,
        precision=schema.precision,
        ranks=float(joined[schema.temperatures[0]]["ranks"].mean()),
        losses=tuple(_lost(temperature, values) for temperature, values in joined.items()),
    )


def compared(
    schema: SoftLabelSchema, logits: Tensor, rows: npt.NDArray[np.int64], temperature: float
) -> dict[str, Tensor]:
    """Return what labels of B dense answers lose, as (B,) float64 values by name.

    The names are `ranks` and the fields of `Lost`, with what each precision adds under its own
    name. A name is missing where the selection has no such thing.

    Args:
        schema: Of the store.
        logits: (B, C_t) on the CPU.
        rows: (B,) manifest rows.
        temperature: One of the declared ones.
    """
    values: dict[str, Tensor] = {}
    has_code = schema.selection != "sampled"
    for precision in PRECISIONS if has_code else (schema.precision,):
        stored = schema.model_copy(update={"precision": precision})
        label = decode(stored, *coded(stored, logits, rows, 0), temperature)
        ids, log_probs = torch.from_numpy(label.ids), torch.from_numpy(label.log_probs)
        if schema.activation == "sigmoid":
            truncation, added = sigmoid_loss(logits, ids, log_probs, temperature)
            probs = (logits.double() / temperature).sigmoid()
            found = {"drop": truncation + added, "outside": probs.scatter(1, ids, 0.0).sum(dim=1)}
        else:
            dense = dense_log_probs(logits, temperature)
            lost = softmax_losses(dense, ids, log_probs, torch.from_numpy(label.log_tail))
            truncation = softmax_losses(dense, ids, *exact_label(dense, ids)).uniform
            added = lost.uniform - truncation
            found = {"outside": lost.outside, "drop": lost.drop}
            if has_code:
                found |= {"uniform": lost.uniform, "bucket": lost.bucket}
        if has_code:
            values |= {"truncation": truncation, precision: added}
        if precision == schema.precision:
            values |= {**found, "ranks": (ids >= 0).sum(dim=1).double()}
    return values


def _lost(temperature: float, values: dict[str, Tensor]) -> Lost:
    spreads = {name: _spread(value) for name, value in values.items()}
    outside = spreads["outside"]
    assert outside is not None
    return Lost(
        temperature=temperature,
        outside=outside,
        truncation=spreads.get("truncation"),
        quantisation={name: found for name in PRECISIONS if (found := spreads.get(name))},
        uniform=spreads.get("uniform"),
        bucket=spreads.get("bucket"),
        drop=spreads.get("drop"),
    )


def _spread(values: Tensor) -> Spread | None:
    if not bool(values.isfinite().all()):
        return None
    return Spread(mean=float(values.mean()), max=float(values.max()))
