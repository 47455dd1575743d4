"""Metrics against plain Python references."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.numerics import (
    agreement,
    average_precision,
    entropy,
    expected_calibration_error,
    group_correct,
    group_top_k_correct,
    mean_per_vertical_average_precision,
    top_k_correct,
)

GROUPS = torch.tensor([0, 0, 1, 1, 1])


def test_top_k_settles_ties_by_id() -> None:
    """Equal logits rank by lower id, so constant logits are right for class 0 only."""
    labels = torch.arange(5)
    constant = torch.zeros(5, 5)
    assert top_k_correct(constant, labels).tolist() == [True, False, False, False, False]
    assert top_k_correct(constant, labels, k=2).tolist() == [True, True, False, False, False]


def test_top_k_equals_sorting() -> None:
    """The rank is that of a stable descending sort."""
    logits = torch.randint(0, 4, (50, 9)).float()
    labels = torch.randint(0, 9, (50,))
    for k in (1, 3):
        order = logits.sort(dim=1, descending=True, stable=True).indices[:, :k]
        expected = (order == labels.unsqueeze(1)).any(1)
        assert torch.equal(top_k_correct(logits, labels, k), expected)


def test_a_nan_is_never_right() -> None:
    """NaN logits count as wrong, also when only the label's logit is NaN."""
    logits = torch.tensor([[math.nan] * 5, [math.nan, -1, -1, -1, -1], [0.0, math.nan, 0, 0, 0]])
    assert not top_k_correct(logits, torch.tensor([0, 0, 0])).any()


def test_group_accuracies_split_the_error() -> None:
    """Right at all = right vertical and right inside it; each part is seen alone."""
    logits = torch.tensor([[5.0, 1, 9, 0, 0], [5.0, 6, 9, 0, 0], [0.0, 0, 9, 8, 7]])
    labels = torch.tensor([0, 0, 3])
    assert top_k_correct(logits, labels).tolist() == [False, False, False]
    assert group_top_k_correct(logits, labels, GROUPS).tolist() == [True, False, False]
    assert group_top_k_correct(logits, labels, GROUPS, k=2).tolist() == [True, True, True]
    assert group_correct(logits, labels, GROUPS).tolist() == [False, False, True]


def reference_average_precision(scores: list[float], relevant: list[bool]) -> float:
    """Sum over distinct thresholds of precision times the rise in recall."""
    total, recall_before = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        chosen = [r for s, r in zip(scores, relevant, strict=True) if s >= threshold]
        recall = sum(chosen) / sum(relevant)
        total += (recall - recall_before) * sum(chosen) / len(chosen)
        recall_before = recall
    return total


def test_average_precision_equals_the_definition() -> None:
    """Columns with ties agree with the sum over thresholds; empty columns are NaN."""
    generator = torch.Generator().manual_seed(3)
    scores = torch.randint(0, 6, (40, 7), generator=generator).float()
    relevant = torch.rand(40, 7, generator=generator) < 0.3
    relevant[:, 6] = False
    found = average_precision(scores, relevant)
    for column in range(6):
        expected = reference_average_precision(
            scores[:, column].tolist(), relevant[:, column].tolist()
        )
        assert found[column].item() == pytest.approx(expected, abs=1e-12)
    assert found[6].isnan()
    shuffled = torch.randperm(40, generator=generator)
    again = average_precision(scores[shuffled], relevant[shuffled])
    torch.testing.assert_close(found, again, equal_nan=True)


def test_mpvap_weighs_verticals_equally() -> None:
    """Each vertical counts once, whatever its number of classes; empty classes are skipped."""
    scores = torch.randn(30, 5)
    relevant = torch.zeros(30, 5, dtype=torch.bool)
    relevant[torch.arange(30), torch.arange(30) % 4] = True  # class 4 is empty
    each = average_precision(scores, relevant)
    expected = (each[:2].mean() + each[2:4].mean()) / 2
    found = mean_per_vertical_average_precision(scores, relevant, GROUPS)
    torch.testing.assert_close(found, expected)


def test_calibration_error() -> None:
    """The error is the mean distance of confidence and accuracy over the bins."""
    confidence = torch.tensor([0.95, 0.95, 0.55, 0.55])
    correct = torch.tensor([True, True, True, False])
    expected = (2 * 0.05 + 2 * 0.05) / 4
    assert expected_calibration_error(confidence, correct, 10).item() == pytest.approx(expected)
    assert expected_calibration_error(torch.ones(3), torch.ones(3, dtype=torch.bool)) == 0


def test_entropy_and_agreement() -> None:
    """Uniform logits have entropy log C, certain ones 0; agreement compares the largest class."""
    logits = torch.tensor([[0.0, 0, 0, 0], [1e4, 0, 0, 0]])
    torch.testing.assert_close(entropy(logits), torch.tensor([math.log(4), 0.0]))
    assert agreement(logits, torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0]])).tolist() == [
        True,
        False,
    ]
