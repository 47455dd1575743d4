"""How far two stores' labels of one sample are apart: KL divergence of sparse distributions.

Let W be the classes that both teachers have. A teacher's probability of a class that it did not
store is an even share of its tail: tail / (C_t - n), with n stored ranks. Both distributions are
restricted to W, raised to at least `FLOOR`, and normalised there; KL is the sum over all of W. With
equal class lists nothing is lost by the restriction.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from storage_schemas.soft_labels import DecodedLabels

FLOOR = 1e-12

Floats = npt.NDArray[np.float64]


class SharedLabels(NamedTuple):
    """B sparse distributions over the shared classes W, before they are normalised.

    Attributes:
        ids: (B, K) position in W, -1 where the rank is absent or not in W.
        probabilities: (B, K), 0 where `ids` is -1.
        other: (B,) probability of each class of W that is not among the ids.
    """

    ids: npt.NDArray[np.int64]
    probabilities: Floats
    other: Floats


def shared_labels(
    labels: DecodedLabels, shared_of: npt.NDArray[np.int64], num_classes: int
) -> SharedLabels:
    """Return decoded labels in terms of the shared classes.

    Args:
        labels: B labels with teacher-local ids.
        shared_of: (C_t + 1,) position in W of each local id, -1 outside W; the last is -1.
        num_classes: C_t.
    """
    ids = shared_of[labels.ids]
    probabilities = np.where(ids >= 0, np.exp(labels.log_probs.astype(np.float64)), 0)
    outside = np.maximum(num_classes - (labels.ids >= 0).sum(axis=1), 1)
    other = np.exp(labels.log_tail.astype(np.float64)) / outside
    probabilities = np.where(ids >= 0, np.maximum(probabilities, FLOOR), 0)
    return SharedLabels(ids, probabilities, np.maximum(other, FLOOR))


def divergences(a: SharedLabels, b: SharedLabels, size: int) -> tuple[Floats, Floats]:
    """Return KL(a || b) and KL(b || a) in nats, each (B,).

    Args:
        a: B labels.
        b: The same samples by the other teacher.
        size: Classes in W.
    """
    same = (a.ids[:, :, None] == b.ids[:, None, :]) & (a.ids >= 0)[:, :, None]
    p, p_other = _normalised(a, size)
    q, q_other = _normalised(b, size)
    # Of a class that only one of them stores, the other's probability is its even share.
    q_at_p = np.where(same.any(axis=2), (same * q[:, None, :]).sum(axis=2), q_other[:, None])
    only_b = (b.ids >= 0) & ~same.any(axis=1)
    rest = size - (a.ids >= 0).sum(axis=1) - only_b.sum(axis=1)
    forward = _terms(p, q_at_p, a.ids >= 0)
    backward = _terms(q_at_p, p, a.ids >= 0)
    p_rows = np.broadcast_to(p_other[:, None], q.shape)
    forward += _terms(p_rows, q, only_b) + rest * p_other * np.log(p_other / q_other)
    backward += _terms(q, p_rows, only_b) + rest * q_other * np.log(q_other / p_other)
    return np.maximum(forward, 0), np.maximum(backward, 0)


def _normalised(labels: SharedLabels, size: int) -> tuple[Floats, Floats]:
    there = (labels.ids >= 0).sum(axis=1)
    mass = labels.probabilities.sum(axis=1) + (size - there) * labels.other
    return labels.probabilities / mass[:, None], labels.other / mass


def _terms(p: Floats, q: Floats, where: npt.NDArray[np.bool_]) -> Floats:
    ratio = np.log(np.where(where, p, 1) / np.where(where, q, 1))
    found: Floats = np.where(where, p * ratio, 0).sum(axis=1)
    return found
