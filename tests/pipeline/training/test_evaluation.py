"""Metrics of a student on test rows, checked on answers that are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.store import create_soft_labels
from pipeline.store.published import PublishedLabels
from pipeline.training.evaluation import (
    evaluate_predictions,
    evaluate_specialists,
    sample_answers,
)
from pipeline.training.prediction import Predictions
from storage_schemas.label_space import LabelSpace
from storage_schemas.manifest import TEST, Manifest
from storage_schemas.soft_labels import SoftLabelSchema, encode

SPACE = LabelSpace(classes=("a/x", "a/y", "b/x", "b/y", "b/z"))
LABELS = np.array([0, 1, 2, 3, 4, 0], np.int32)


@pytest.fixture
def manifest():
    """Six test rows."""
    return Manifest.empty().appended(
        keys=[f"k{i}" for i in range(6)],
        labels=LABELS,
        splits=np.full(6, TEST, np.uint8),
        digests=np.zeros((6, 16), np.uint8),
    )


@pytest.fixture
def published(tmp_path):
    """A specialist of vertical a that is right on row 0 and wrong on rows 1 and 5."""
    schema = SoftLabelSchema(
        teacher="a",
        num_rows=6,
        num_views=1,
        k=2,
        num_classes=2,
        shard_rows=8,
        chunk_rows=8,
        classes=SPACE.classes[:2],
        global_ids=(0, 1),
        split="test",
    )
    store = create_soft_labels(tmp_path / "a.zarr", schema)
    ids, gaps = store.empty_shard()
    for row, first in ((0, 0), (1, 0), (5, 1)):
        ids[row], gaps[row] = encode(
            schema,
            np.array([[first, 1 - first]]),
            np.array([[2.0, 0.0]], np.float32),
            np.full((1, 1), np.inf, np.float32),
        )
    store.write_shard(0, 0, ids, gaps)
    routes = np.zeros((6, 1), bool)
    routes[:2] = True
    return PublishedLabels(names=("a",), stores=(store,), routes=routes)


def predictions_of(answers):
    """Predictions whose logits rank the classes in the given orders."""
    logits = torch.zeros(len(answers), len(SPACE))
    for row, order in enumerate(answers):
        for rank, class_id in enumerate(order):
            logits[row, class_id] = -float(rank)
    return Predictions(
        rows=np.arange(6),
        labels=torch.from_numpy(LABELS.astype(np.int64)),
        logits=logits,
        probabilities=logits.softmax(dim=1),
    )


ANSWERS = [
    (0, 1, 2, 3, 4),  # right
    (0, 1, 2, 3, 4),  # wrong, right vertical
    (0, 2, 1, 3, 4),  # wrong vertical, right inside its own
    (3, 2, 0, 1, 4),  # right
    (0, 1, 2, 3, 4),  # wrong vertical, and last inside its own
    (0, 1, 2, 3, 4),  # right
]


def test_accuracies_are_counted_among_all_and_inside_the_vertical(published):
    """top-1, top-1 inside and the confusion across verticals are what can be counted by hand."""
    found = evaluate_predictions(predictions_of(ANSWERS), SPACE, published)
    assert found["top1"] == pytest.approx(50.0)
    assert found["top1_inside"] == pytest.approx(100 * 4 / 6, abs=1e-3)
    assert found["top5"] == 100.0
    assert found["verticals"]["a"]["top1"] == pytest.approx(100 * 2 / 3, abs=1e-3)
    assert found["verticals"]["b"]["top1_inside"] == pytest.approx(100 * 2 / 3, abs=1e-3)
    assert found["vertical_confusions"] == [[3, 0], [2, 1]]


def test_agreement_is_with_what_the_specialist_said(published):
    """The student agrees with the specialist on rows 0 and 1, whatever is right."""
    found = evaluate_predictions(predictions_of(ANSWERS), SPACE, published)
    assert found["agreement"]["a"] == pytest.approx(100 * 2 / 3, abs=1e-3)


def test_specialist_is_judged_from_its_test_store(published, manifest):
    """A specialist's accuracy comes from its stored answers alone."""
    found = evaluate_specialists(published, SPACE, manifest)["a"]
    assert found["images"] == 3
    assert found["top1"] == pytest.approx(100 / 3, abs=1e-3)
    assert found["top5"] == 100.0
    assert found["verticals"] == ["a"]


def test_samples_show_both_top_lists(published, manifest):
    """A sample names the image, its class, and the answers of student and teacher."""
    samples = sample_answers(predictions_of(ANSWERS), published, SPACE, manifest, 6)
    assert [sample["key"] for sample in samples] == [f"k{i}" for i in range(6)]
    first, third = samples[0], samples[2]
    assert first["teacher_name"] == "a"
    assert first["teacher"][0][0] == "a/x"
    assert first["student"][0][0] == "a/x"
    assert third["teacher"] == []
    assert sample_answers(predictions_of(ANSWERS), published, SPACE, manifest, 0) == []


def test_perfect_student_has_perfect_scores(published):
    """All right gives 100 % everywhere, mpvap among it."""
    answers = [[int(label), *(c for c in range(5) if c != label)] for label in LABELS]
    found = evaluate_predictions(predictions_of(answers), SPACE, published)
    assert found["top1"] == found["top1_inside"] == found["mpvap"] == 100.0
