"""A few logits out of many, together with their normaliser, at the cost of one gradient buffer.

In: `pick` and `pick_and_normalise`. Left out: what is done with the values (divergences.py).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _GatherAndLogSumExp(torch.autograd.Function):
    """`gather` and `logsumexp` over dim 1, with one (B, C) tensor made in the backward pass.

    Separately, each of the two would make its own gradient of that size, to be added up.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        log_norm = logits.logsumexp(dim=1)
        ctx.save_for_backward(logits, log_norm, columns)
        return logits.gather(1, columns), log_norm

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, picked: Tensor, norm: Tensor) -> tuple[Tensor, None]:
        logits, log_norm, columns = ctx.saved_tensors
        gradient: Tensor = (logits - log_norm.unsqueeze(1)).exp_().mul_(norm.unsqueeze(1))
        return gradient.scatter_add_(1, columns, picked), None


def _columns(ids: Tensor) -> Tensor:
    """Return (B, T * K) columns for (T, B, K) ids: one gather for all teachers."""
    t, b, k = ids.shape
    return ids.transpose(0, 1).reshape(b, t * k)


def _by_teacher(values: Tensor, ids: Tensor) -> Tensor:
    t, b, k = ids.shape
    return values.reshape(b, t, k).transpose(0, 1)


def pick(logits: Tensor, ids: Tensor) -> Tensor:
    """Return (T, B, K) logits of (T, B, K) class ids from (B, C) logits."""
    return _by_teacher(logits.gather(1, _columns(ids)), ids)


def pick_and_normalise(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return (T, B, K) logits of the ids, and the (B,) logsumexp over all C classes.

    Args:
        logits: (B, C) float32 or float64.
        ids: (T, B, K) int64 in 0..C-1; an id may appear twice.
    """
    values, log_norm = _GatherAndLogSumExp.apply(logits, _columns(ids))
    return _by_teacher(values, ids), log_norm
