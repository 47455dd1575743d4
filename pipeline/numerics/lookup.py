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


class _SupportStatistics(torch.autograd.Function):
    """All that a factorised loss needs of the logits, with one (B, C) gradient buffer."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, columns: Tensor, inside: Tensor, ids: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        b = logits.shape[0]
        t, s = columns.shape[0], columns.shape[2]
        values = logits.gather(1, _columns(columns)).view(b, t, s).transpose(0, 1)
        total = (values * inside).sum(dim=2)
        masked = values.masked_fill(inside == 0, -torch.inf)
        top = masked.amax(dim=2, keepdim=True)
        centred = masked - top
        plain = centred.exp()
        plain_sum = plain.sum(dim=2, keepdim=True)
        tempered = centred.div_(temperature).exp_()
        tempered_sum = tempered.sum(dim=2, keepdim=True)
        all_probs = logits.softmax(dim=1)
        log_norm = logits.amax(dim=1) - all_probs.amax(dim=1).log()
        ctx.temperature = temperature
        ctx.save_for_backward(
            all_probs,
            columns,
            inside,
            ids,
            plain.div_(plain_sum),
            tempered.div_(tempered_sum),
        )
        return (
            _by_teacher(logits.gather(1, _columns(ids)), ids),
            total,
            (top / temperature + tempered_sum.log()).squeeze(2),
            (top + plain_sum.log()).squeeze(2),
            log_norm,
        )

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, picked: Tensor, total: Tensor, tempered: Tensor, plain: Tensor, norm: Tensor
    ) -> tuple[Tensor, None, None, None, None]:
        all_probs, columns, inside, ids, plain_probs, tempered_probs = ctx.saved_tensors
        gradient: Tensor = all_probs * norm.unsqueeze(1)
        own = tempered_probs * (tempered / ctx.temperature).unsqueeze(2)
        own.addcmul_(plain_probs, plain.unsqueeze(2)).addcmul_(inside, total.unsqueeze(2))
        gradient.scatter_add_(1, _columns(columns), _columns(own))
        gradient.scatter_add_(1, _columns(ids), _columns(picked))
        return gradient, None, None, None, None


def support_statistics(
    logits: Tensor, columns: Tensor, inside: Tensor, ids: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return what a loss over supports needs of the logits.

    Args:
        logits: (B, C) float32 or float64.
        columns: (T, B, S) int64 class ids of each row's supports, padded with any id.
        inside: (T, B, S) like logits, 1 where `columns` is a class, 0 where it is padding; at
            least one class a row.
        ids: (T, B, K) int64 in 0..C-1.
        temperature: Of the second normaliser.

    Returns:
        (T, B, K) logits of the ids; (T, B) sum of the support's logits; (T, B) logsumexp over the
        support of logits / temperature; (T, B) the same at temperature 1; (B,) logsumexp over all
        classes at temperature 1.
    """
    found: tuple[Tensor, Tensor, Tensor, Tensor, Tensor] = _SupportStatistics.apply(
        logits, columns, inside, ids, temperature
    )
    return found
