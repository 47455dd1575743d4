"""The tolerance of an audit, and the KL that it reports."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pipeline.numerics import sparsify
from pipeline.teachers.agreement import divergence, within_tolerance
from storage_schemas.soft_labels import SoftLabelSchema, decode, encode

NOISE = 1e-3
KINDS: list[dict[str, Any]] = [
    {},
    {"precision": "exact"},
    {"k": 20},
    {"k": 1},
    {"activation": "sigmoid"},
    {"activation": "sigmoid", "precision": "exact"},
]


def schema_of(**fields: Any) -> SoftLabelSchema:
    values = {
        "teacher": "birds",
        "num_rows": 200,
        "num_views": 1,
        "k": 5,
        "num_classes": 20,
        "temperatures": (1.0, 3.0),
        "shard_rows": 200,
        "chunk_rows": 200,
        "classes": tuple(f"birds/{i}" for i in range(20)),
        "global_ids": tuple(range(20)),
    }
    return SoftLabelSchema.model_validate(values | fields)


def codes_of(schema: SoftLabelSchema, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    found = sparsify(torch.from_numpy(logits), schema.k, schema.temperatures, schema.activation)
    return encode(schema, found.ids.numpy(), found.logits.numpy(), found.log_tail_ratio.numpy())


def logits_of(spread: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, spread, (200, 20)).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spread", [0.001, 1.0, 8.0, 200.0])
def test_noise_below_the_bound_is_tolerated(kind: dict[str, Any], spread: float) -> None:
    """Labels of logits that moved by up to the noise fit, whatever swaps, rounds or clips."""
    schema = schema_of(**kind)
    logits = logits_of(spread)
    scale = np.maximum(np.abs(logits).max(axis=1, keepdims=True), 1)
    moved = logits + np.random.default_rng(1).uniform(-1, 1, logits.shape) * 0.99 * NOISE * scale
    ids, gaps = codes_of(schema, moved.astype(np.float32))
    assert within_tolerance(schema, ids, gaps, logits.astype(np.float64), NOISE).all()
    assert within_tolerance(
        schema, *codes_of(schema, logits), logits.astype(np.float64), 1e-6
    ).all()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_wrong_label_is_seen(kind: dict[str, Any]) -> None:
    """Another id, another distance, another tail: each alone puts a label out of tolerance."""
    schema = schema_of(**kind)
    logits = logits_of(3.0)
    ids, gaps = codes_of(schema, logits)
    exact = logits.astype(np.float64)

    def fits(ids: np.ndarray, gaps: np.ndarray) -> float:
        return float(within_tolerance(schema, ids, gaps, exact, 1e-5).mean())

    assert fits(ids, gaps) == 1
    assert fits(np.roll(ids, 1, axis=0), gaps) < 0.2
    absent = np.full_like(ids, schema.ids_fill)
    assert fits(absent, gaps) == 0
    for column in range(schema.columns):
        if schema.k == schema.num_classes and column >= schema.k - 1:
            continue  # there is no tail, and the column says nothing
        other = gaps.copy()
        other[:, column] = np.where(gaps[:, column] > 2, gaps[:, column] - 2, gaps[:, column] + 2)
        assert fits(ids, other) < 0.05


def test_ranks_that_hold_no_class_are_left_out() -> None:
    """A row that keeps fewer classes is compared in those, and its tail is the rest."""
    schema = schema_of(temperatures=(1.0,))
    logits = logits_of(3.0)
    ids, gaps = codes_of(schema, logits)
    shorter = schema_of(temperatures=(1.0,), k=3)
    few_ids, few_gaps = codes_of(shorter, logits)
    ids[:, 3:] = schema.ids_fill
    gaps[:, :2], gaps[:, -1] = few_gaps[:, :2], few_gaps[:, -1]
    np.testing.assert_array_equal(ids[:, :3], few_ids)
    assert within_tolerance(schema, ids, gaps, logits.astype(np.float64), 1e-5).all()


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_kl_is_that_of_the_dense_distributions(temperature: float) -> None:
    """Over all classes, the tail spread evenly: equal to the sum written out; 0 for itself."""
    schema = schema_of()
    one, two = codes_of(schema, logits_of(2.0)), codes_of(schema, logits_of(2.0, seed=5))

    def dense(codes: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        label = decode(schema, *codes, temperature)
        values = np.repeat(label.log_tail[:, None] - np.log(15.0), 20, axis=1)
        np.put_along_axis(values, label.ids, label.log_probs, axis=1)
        return values.astype(np.float64)

    expected = (np.exp(dense(one)) * (dense(one) - dense(two))).sum(axis=1)
    np.testing.assert_allclose(divergence(schema, one, two, temperature), expected, atol=1e-5)
    assert divergence(schema, one, one, temperature).max() < 1e-6


def test_kl_of_sigmoid_labels_is_finite() -> None:
    """Classes that only one of the two labels names do not make it infinite."""
    schema = schema_of(activation="sigmoid")
    one, two = codes_of(schema, logits_of(6.0)), codes_of(schema, logits_of(6.0, seed=5))
    found = divergence(schema, one, two, 1.0)
    assert np.isfinite(found).all()
    assert found.mean() > 0.1
    assert divergence(schema, one, one, 1.0).max() < 1e-6
