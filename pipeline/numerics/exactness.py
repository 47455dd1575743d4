"""How far a stored label is from the dense answer that it was made of.

In: the divergences, per row and in float64. Left out: which rows (pipeline.teachers.exactness) and
means over them.

Two directions are needed. A label that gives 0 to a class with mass is infinitely far from the
dense answer in KL(dense || label); then KL(label || dense) is used, which is finite, and says how
much the label overstates what it keeps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LabelLosses:
    """Divergences of B labels from their dense answers, (B,) float64 in nats.

    Attributes:
        outside: Mass of the dense answer on the classes that the label does not keep. Not in
            nats.
        uniform: KL(dense || label) with the label's tail spread evenly over those classes; +inf
            where there is mass but no tail.
        bucket: KL over n + 1 events: the kept classes, and all others as one. This is all that a
            loss with the bucket tail sees; how the dense answer divides its tail is not told to
            it, and not told wrongly. +inf as above. For every label uniform = bucket + the same
            uniform with exact values: truncation and code add up.
        drop: KL(label || dense) with the kept classes renormalised to 1. For exact values it is
            -log(1 - outside).
    """

    outside: Tensor
    uniform: Tensor
    bucket: Tensor
    drop: Tensor


def dense_log_probs(logits: Tensor, temperature: float) -> Tensor:
    """Return (B, C_t) float64 log softmax(logits / temperature)."""
    return (logits.double() / temperature).log_softmax(dim=1)


def exact_label(dense: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return what a label of these classes would say without a code: log_probs and log_tail.

    Args:
        dense: (B, C_t) float64 log-probabilities.
        ids: (B, K) kept classes; -1 where none.
    """
    log_probs = dense.gather(1, ids.clamp(min=0)).masked_fill(ids < 0, -torch.inf)
    return log_probs, _without(dense, ids).logsumexp(dim=1)


def _without(dense: Tensor, ids: Tensor) -> Tensor:
    """Return the dense log-probabilities with -inf at the kept classes."""
    # Where nothing is kept, rank 0, which always is, is struck out once more.
    return dense.scatter(1, torch.where(ids < 0, ids[:, :1], ids), -torch.inf)


def softmax_losses(dense: Tensor, ids: Tensor, log_probs: Tensor, log_tail: Tensor) -> LabelLosses:
    """Compare softmax labels with their dense answers.

    Args:
        dense: (B, C_t) float64 log-probabilities at the label's temperature.
        ids: (B, K) class ids as in `dense`, rank 0 there; -1 where none.
        log_probs: (B, K) decoded; -inf where none.
        log_tail: (B,) decoded; -inf where there is none.
    """
    stored = ids >= 0
    rest = _without(dense, ids)
    log_outside = rest.logsumexp(dim=1)
    outside = log_outside.exp()
    own = dense.gather(1, ids.clamp(min=0))
    said = log_probs.double()
    kept_mass = said.logsumexp(dim=1)
    # Labels are decoded in float32: the last bit of their sum is not what is measured here.
    norm = torch.logaddexp(kept_mass, log_tail.double())
    said, tail = said - norm[:, None], log_tail.double() - norm

    kept = torch.where(stored, own.exp() * (own - said), 0.0).sum(dim=1)
    bucket = kept + torch.where(outside > 0, outside * (log_outside - tail), 0.0)
    others = rest > -torch.inf
    within = torch.where(others, rest.exp() * rest, 0.0).sum(dim=1)
    count = others.sum(dim=1).clamp(min=1).double()
    spread = within - outside * (tail - count.log())
    uniform = kept + torch.where(outside > 0, spread, 0.0)
    renormalised = said - (kept_mass - norm)[:, None]
    drop = torch.where(stored, renormalised.exp() * (renormalised - own), 0.0).sum(dim=1)
    return LabelLosses(outside=outside, uniform=uniform, bucket=bucket, drop=drop)


def sigmoid_loss(
    logits: Tensor, ids: Tensor, log_probs: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Compare sigmoid labels with their dense answers, as C_t independent events each.

    Both are KL(label || dense), since a class that is not kept has the label 0.

    Args:
        logits: (B, C_t).
        ids: (B, K) kept classes.
        log_probs: (B, K) decoded.
        temperature: Of the labels.

    Returns:
        (B,) sum over the classes that are not kept, and (B,) over the kept ones.
    """
    scores = logits.double() / temperature
    log_on = torch.nn.functional.logsigmoid(scores)
    log_off = torch.nn.functional.logsigmoid(-scores)
    own_on, own_off = log_on.gather(1, ids), log_off.gather(1, ids)
    said = log_probs.double()
    on, off = said.exp(), -said.expm1()
    kept = torch.xlogy(on, on) - on * own_on + torch.xlogy(off, off) - off * own_off
    return -log_off.scatter(1, ids, 0.0).sum(dim=1), kept.sum(dim=1)
