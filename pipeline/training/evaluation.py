"""Evaluating a student on test rows, beside what its teachers said of the same rows.

In: accuracy among all classes and inside each vertical, mpvap, calibration, agreement with each
specialist, cost, confusions across verticals, and a few samples with top-5 lists. Left out:
teachers themselves; their answers on test rows come from their test stores.

Where classes have is-a parents, "which class" is asked of the leaves, the classes that images are
labelled with, and mpvap is over all classes, an image being relevant to its label and all above it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.compress.cost import Cost, cost
from pipeline.config import Project
from pipeline.numerics import metrics
from pipeline.store import SoftLabelStore
from pipeline.store.published import PublishedLabels, published_cost
from pipeline.training.prediction import Predictions, load_student, predict_rows
from pipeline.training.runs import StudentRun
from pipeline.workspace import Workspace
from storage_schemas.hierarchy import label_closure, leaf_classes
from storage_schemas.label_space import LabelSpace
from storage_schemas.manifest import TEST, Manifest
from storage_schemas.soft_labels import DecodedLabels

TOP = 5
Rows = npt.NDArray[np.int64]


def _percent(correct: Tensor) -> float | None:
    return round(100 * float(correct.double().mean()), 3) if len(correct) else None


def evaluate_predictions(
    predictions: Predictions, space: LabelSpace, published: PublishedLabels
) -> dict[str, Any]:
    """Return the metrics of a student, all accuracies in percent.

    Args:
        predictions: On the test rows.
        space: For verticals and names.
        published: The teachers' test stores; may be empty.
    """
    labels, probabilities = predictions.labels, predictions.probabilities
    vertical_of = torch.from_numpy(space.vertical_of.astype(np.int64))
    vertical = vertical_of[labels]
    leaves = torch.from_numpy(leaf_classes(space))
    logits = _of_leaves(predictions.logits, leaves)
    top1 = metrics.top_k_correct(logits, labels, 1)
    top5 = metrics.top_k_correct(logits, labels, TOP)
    inside = metrics.group_top_k_correct(logits, labels, vertical_of)
    confidence, predicted = _of_leaves(probabilities, leaves).max(dim=1)
    relevant = _relevant(labels, space)
    by_vertical = {}
    for index, name in enumerate(space.verticals):
        here = vertical == index
        by_vertical[name] = {
            "classes": len(space.classes_in(name)),
            "images": int(here.sum()),
            "top1": _percent(top1[here]),
            "top5": _percent(top5[here]),
            "top1_inside": _percent(inside[here]),
        }
    across = torch.zeros(len(space.verticals), len(space.verticals), dtype=torch.int64)
    across.index_put_((vertical, vertical_of[predicted]), torch.tensor(1), accumulate=True)
    return {
        "images": len(labels),
        "top1": _percent(top1),
        "top5": _percent(top5),
        "top1_inside": _percent(inside),
        "mpvap": round(
            100
            * float(
                metrics.mean_per_vertical_average_precision(probabilities, relevant, vertical_of)
            ),
            3,
        ),
        "calibration_error": round(
            100 * float(metrics.expected_calibration_error(confidence, top1)), 3
        ),
        "entropy": round(float(metrics.entropy(predictions.logits).mean()), 4),
        "verticals": by_vertical,
        "vertical_confusions": across.tolist(),
        "agreement": _agreement(predictions, space, published),
    }


def _of_leaves(scores: Tensor, leaves: Tensor) -> Tensor:
    """Return (N, C) scores in which an inner class, however sure, answers to no "which one"."""
    return scores if leaves.all() else scores.masked_fill(~leaves, -torch.inf)


def _relevant(labels: Tensor, space: LabelSpace) -> Tensor:
    """Return (N, C) the classes that each image belongs to: its label and all above it."""
    closure = torch.from_numpy(label_closure(space))[labels]
    relevant = torch.zeros(len(labels), len(space) + 1, dtype=torch.bool)
    absent = torch.full_like(closure, len(space))
    return relevant.scatter_(1, torch.where(closure >= 0, closure, absent), True)[:, :-1]


def _agreement(
    predictions: Predictions, space: LabelSpace, published: PublishedLabels
) -> dict[str, float | None]:
    """How often the student, among a specialist's leaves, names what the specialist names."""
    found = {}
    leaves = leaf_classes(space)
    for index, (name, store) in enumerate(zip(published.names, published.stores, strict=True)):
        assert published.routes is not None
        routed = published.routes[predictions.labels.numpy(), index]
        rows = published.labelled(index, predictions.rows[routed])
        here = np.flatnonzero(np.isin(predictions.rows, rows))
        said = torch.from_numpy(_leaf_ids(_test_labels(store, rows), space)[:, 0])
        support = torch.from_numpy(store.label_map.support[leaves[store.label_map.support]])
        best = support[predictions.logits[torch.from_numpy(here)][:, support].argmax(dim=1)]
        found[name] = _percent(best == said)
    return found


def _test_labels(store: SoftLabelStore, rows: Rows) -> DecodedLabels:
    """Return the evaluation view's labels at the first temperature, since 1 may not be declared."""
    return store.fetch(rows, np.zeros_like(rows), temperature=store.schema.temperatures[0])


def _leaf_ids(labels: DecodedLabels, space: LabelSpace) -> npt.NDArray[np.int64]:
    """Return (N, k) the stored classes without inner ones, most probable first, then -1."""
    leaf = (labels.ids >= 0) & leaf_classes(space)[labels.ids]
    order = np.argsort(~leaf, axis=1, kind="stable")
    ids = np.where(leaf, labels.ids, -1)
    return np.take_along_axis(ids, order, axis=1).astype(np.int64)


def evaluate_specialists(
    published: PublishedLabels, space: LabelSpace, manifest: Manifest
) -> dict[str, Any]:
    """Return each specialist's accuracy on its own test rows, from its test store."""
    found = {}
    rows = manifest.rows(TEST)
    rows = rows[manifest.labels[rows] >= 0]
    for index, (name, store) in enumerate(zip(published.names, published.stores, strict=True)):
        assert published.routes is not None
        named = np.isin(manifest.labels[rows], store.label_map.global_ids)
        routed = rows[published.routes[manifest.labels[rows], index] & named]
        here = published.labelled(index, routed)
        labels = manifest.labels[here].astype(np.int64)
        ids = _leaf_ids(_test_labels(store, here), space)
        found[name] = {
            "classes": len(store.label_map),
            "images": len(here),
            "top1": _percent(torch.from_numpy(ids[:, 0] == labels)),
            "top5": _percent(torch.from_numpy((ids[:, :TOP] == labels[:, None]).any(axis=1))),
            "verticals": sorted(
                {space.classes[i].partition("/")[0] for i in store.label_map.support}
            ),
        }
    return found


def sample_answers(
    predictions: Predictions,
    published: PublishedLabels,
    space: LabelSpace,
    manifest: Manifest,
    count: int,
) -> list[dict[str, Any]]:
    """Return evenly spread test samples with the teacher's and the student's top-5."""
    places = np.unique(np.linspace(0, len(predictions.rows) - 1, count).round().astype(int))
    samples = []
    leaves = leaf_classes(space)
    shown = min(TOP, int(leaves.sum()))
    for place in places if count else ():
        row, label = int(predictions.rows[place]), int(predictions.labels[place])
        scores = predictions.probabilities[place : place + 1]
        student = _of_leaves(scores, torch.from_numpy(leaves))[0].topk(shown)
        sample: dict[str, Any] = {
            "row": row,
            "key": str(manifest.keys[row]),
            "label": space.classes[label],
            "student": _named(space, student.indices.tolist(), student.values.tolist()),
            "teacher": [],
            "teacher_name": None,
        }
        for index, name in enumerate(published.names):
            assert published.routes is not None
            knows = (
                published.routes[label, index]
                and label in published.stores[index].label_map.support
            )
            if knows and len(published.labelled(index, np.array([row]))):
                said = _test_labels(published.stores[index], np.array([row]))
                named = np.flatnonzero((said.ids[0] >= 0) & leaves[said.ids[0]])[:TOP]
                probs = np.exp(said.log_probs[0, named])
                sample["teacher"] = _named(space, said.ids[0, named].tolist(), probs.tolist())
                sample["teacher_name"] = name
                break
        samples.append(sample)
    return samples


def _named(space: LabelSpace, ids: list[int], probabilities: list[float]) -> list[list[Any]]:
    return [[space.classes[i], round(p, 4)] for i, p in zip(ids, probabilities, strict=True)]


def student_cost(run: StudentRun, space: LabelSpace) -> Cost:
    """Return parameters and FLOPs of a finished run's network."""
    return cost(load_student(run, space), run.config.input)


def evaluate_runs(
    project: Project,
    runs: list[StudentRun],
    space: LabelSpace,
    manifest: Manifest,
    published: PublishedLabels,
    *,
    report: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Evaluate finished runs and the specialists on all labelled test rows.

    Args:
        project: Of the runs.
        runs: Student first, then its control where there is one.
        space: All classes.
        manifest: All rows.
        published: The teachers' test stores; what they lack is left out of the specialists'
            figures, which are None where nothing is left.
        report: Called with (batches done, batches) of the run at hand.

    Returns:
        `runs`, `specialists` (with the cost of each), `samples`, `verticals`, as JSON.
    """
    found = []
    samples: list[dict[str, Any]] = []
    for run in runs:
        predictions = predict_rows(project, run, space, manifest, report=report)
        record = run.record or {}
        found.append(
            {
                "role": run.role,
                "folder": str(run.folder.relative_to(project.workspace)),
                "objective": run.config.objective.name,
                "steps": record.get("steps"),
                "labels": record.get("labels"),
                "seconds": record.get("seconds"),
                "cost": asdict(student_cost(run, space)),
                **evaluate_predictions(predictions, space, published),
            }
        )
        if run is runs[0]:
            samples = sample_answers(
                predictions, published, space, manifest, project.report.samples
            )
    specialists = evaluate_specialists(published, space, manifest)
    workspace = Workspace(project.workspace)
    for name, values in specialists.items():
        values["cost"] = published_cost(workspace, name)
    return {
        "runs": found,
        "specialists": specialists,
        "samples": samples,
        "verticals": list(space.verticals),
        "classes": len(space),
    }
