"""How good predictions are.

In: accuracy with settled ties, accuracy inside and between groups of classes, average precision,
calibration error, agreement, entropy. Left out: running means over an epoch; functions of logits
return one value per sample, to be averaged by the caller over whatever it wants to report.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _rank(logits: Tensor, labels: Tensor, candidates: Tensor | None = None) -> Tensor:
    """Return (B,) how many classes stand before the label: larger, or equal with a lower id.

    A NaN stands before everything and a NaN label behind everything, so a broken network is
    never right.
    """
    own = logits.gather(1, labels.unsqueeze(1))
    position = torch.arange(logits.shape[1], device=logits.device)
    before = ~(logits <= own) | ((logits == own) & (position < labels.unsqueeze(1)))
    if candidates is not None:
        before = before & candidates
    return before.sum(dim=1)


def top_k_correct(logits: Tensor, labels: Tensor, k: int = 1) -> Tensor:
    """Return (B,) bool: the label is among the k largest of (B, C) logits.

    Args:
        logits: (B, C).
        labels: (B,) int64 in 0..C-1.
        k: Accepted ranks. Equal logits rank by lower id.
    """
    return _rank(logits, labels) < k


def group_top_k_correct(logits: Tensor, labels: Tensor, group_of: Tensor, k: int = 1) -> Tensor:
    """Return (B,) bool: the label is among the k largest logits of its own group of classes.

    Args:
        logits: (B, C).
        labels: (B,) int64.
        group_of: (C,) group of each class, e.g. its vertical.
        k: Accepted ranks inside the group.
    """
    candidates = group_of.unsqueeze(0) == group_of[labels].unsqueeze(1)
    return _rank(logits, labels, candidates) < k


def group_correct(logits: Tensor, labels: Tensor, group_of: Tensor) -> Tensor:
    """Return (B,) bool: the largest logit lies in the label's group of classes.

    Args:
        logits: (B, C).
        labels: (B,) int64.
        group_of: (C,) group of each class.
    """
    return group_of[logits.argmax(dim=1)] == group_of[labels]


def agreement(logits: Tensor, other: Tensor) -> Tensor:
    """Return (B,) bool: two (B, C) logits have the same largest class."""
    return logits.argmax(dim=1) == other.argmax(dim=1)


def entropy(logits: Tensor) -> Tensor:
    """Return (...,) the entropy in nats of softmax over the last dimension of (..., C) logits."""
    log_probs = logits.log_softmax(dim=-1)
    probs = log_probs.exp()
    return -torch.where(probs > 0, probs * log_probs, 0.0).sum(dim=-1)


def average_precision(scores: Tensor, relevant: Tensor) -> Tensor:
    """Return the average precision of each column.

    The sum over thresholds of precision times the rise in recall. Equal scores share one
    threshold, so the result does not depend on the order of the samples.

    Args:
        scores: (N, C), larger is more relevant.
        relevant: (N, C) bool.

    Returns:
        (C,) float64; NaN for a column without a relevant sample.
    """
    if scores.shape != relevant.shape or scores.ndim != 2:
        raise ValueError(
            f"scores and relevant must both be (N, C), got {tuple(scores.shape)} and "
            f"{tuple(relevant.shape)}"
        )
    samples = scores.shape[0]
    if samples == 0:
        return scores.new_full((scores.shape[1],), torch.nan, dtype=torch.float64)
    ordered, order = scores.sort(dim=0, descending=True)
    hits = relevant.gather(0, order)
    place = torch.arange(1, samples + 1, device=scores.device).unsqueeze(1)
    ends = torch.ones_like(hits)
    ends[:-1] = ordered[:-1] != ordered[1:]
    # The last place of each run of equal scores, carried back over the run.
    last = torch.where(ends, place, samples).flip(0).cummin(dim=0).values.flip(0)
    precision = hits.cumsum(dim=0).gather(0, last - 1).double() / last
    return torch.where(hits, precision, 0.0).sum(dim=0) / hits.sum(dim=0)


def mean_per_vertical_average_precision(
    scores: Tensor, relevant: Tensor, vertical_of: Tensor
) -> Tensor:
    """Return mpvap: the mean over verticals of the mean average precision of their classes.

    The measure of Knowledge Concentration (arXiv 1711.07607). How the paper averages inside a
    vertical was not readable to us; here it is the plain mean over the vertical's classes that
    have a relevant sample, each ranked over all N samples.

    Args:
        scores: (N, C).
        relevant: (N, C) bool; a sample may have several classes.
        vertical_of: (C,) vertical of each class.

    Returns:
        () float64; NaN if no class has a relevant sample.
    """
    means = []
    for vertical in sorted(set(vertical_of.tolist())):
        columns = vertical_of == vertical
        means.append(average_precision(scores[:, columns], relevant[:, columns]).nanmean())
    return torch.stack(means).nanmean()


def expected_calibration_error(confidence: Tensor, correct: Tensor, bins: int = 15) -> Tensor:
    """Return the expected calibration error (Guo et al. 2017, arXiv 1706.04599, equation 3).

    Args:
        confidence: (N,) probability of the predicted class.
        correct: (N,) bool.
        bins: Equal-width bins (low, high] of [0, 1].

    Returns:
        () float64 in [0, 1].
    """
    confidence = confidence.double()
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64, device=confidence.device)
    place = torch.bucketize(confidence, edges[1:-1])
    surplus = torch.zeros(bins, dtype=torch.float64, device=confidence.device)
    surplus.index_add_(0, place, correct.double() - confidence)
    return surplus.abs().sum() / max(1, len(confidence))
