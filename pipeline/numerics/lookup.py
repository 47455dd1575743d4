"""A few logits out of many, together with their normaliser, in one buffer of their size.

In: `pick`, `pick_and_normalise` and `support_statistics`. Left out: what is done with the values
(divergences.py), and the losses that need no more than one weighted sum (cross_entropy.py).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeline.numerics.softmax_rows import into_gradient, kept_probs, raised, softmax_with_norm


def columns_of(ids: Tensor) -> Tensor:
    """Return (B, T * K) columns for (T, B, K) ids: one gather for all teachers."""
    t, b, k = ids.shape
    return ids.transpose(0, 1).reshape(b, t * k)


def _by_teacher(values: Tensor, ids: Tensor) -> Tensor:
    t, b, k = ids.shape
    return values.reshape(b, t, k).transpose(0, 1)


def pick(logits: Tensor, ids: Tensor) -> Tensor:
    """Return (T, B, K) logits of (T, B, K) class ids from (B, C) logits."""
    return _by_teacher(logits.gather(1, columns_of(ids)), ids)


class _PickAndNormalise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, columns: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        probs, norm, _ = softmax_with_norm(logits, temperature)
        if ctx.needs_input_grad[0]:
            ctx.probs, ctx.temperature = probs, temperature
            ctx.save_for_backward(logits, columns)
        return logits.gather(1, columns).to(probs.dtype) / temperature, norm

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, picked: Tensor, norm: Tensor) -> tuple[Tensor, None, None]:
        logits, columns = ctx.saved_tensors
        probs = kept_probs(ctx, logits, ctx.temperature)
        gradient = into_gradient(probs, norm / ctx.temperature)
        gradient.scatter_add_(1, columns, picked / ctx.temperature)
        return gradient.to(logits.dtype), None, None


def pick_and_normalise(
    logits: Tensor, ids: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return (T, B, K) logits / T of the ids, and the (B,) logsumexp of logits / T over all C.

    Args:
        logits: (B, C); half precision is raised to float32.
        ids: (T, B, K) int64 in 0..C-1; an id may appear twice.
        temperature: T.
    """
    values, log_norm = _PickAndNormalise.apply(logits, columns_of(ids), temperature)
    return _by_teacher(values, ids), log_norm


class _SupportStatistics(torch.autograd.Function):
    """All that a factorised loss needs of the logits."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, columns: Tensor, inside: Tensor, ids: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        dtype = raised(logits.dtype)
        inside = inside.to(dtype)
        values = pick(logits, columns).to(dtype)
        total = (values * inside).sum(dim=2)
        masked = values.masked_fill(inside == 0, -torch.inf)
        top = masked.amax(dim=2, keepdim=True)
        centred = masked.sub_(top)
        plain = centred.exp()
        plain_sum = plain.sum(dim=2, keepdim=True)
        tempered = plain if temperature == 1 else centred.div_(temperature).exp_()
        tempered_sum = tempered.sum(dim=2, keepdim=True)
        probs, log_norm, _ = softmax_with_norm(logits, 1.0)
        if ctx.needs_input_grad[0]:
            ctx.probs, ctx.temperature = probs, temperature
            ctx.save_for_backward(
                logits, columns, inside, ids, plain, plain_sum, tempered, tempered_sum
            )
        return (
            pick(logits, ids).to(dtype),
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
        (
            logits,
            columns,
            inside,
            ids,
            plain_shares,
            plain_sum,
            tempered_shares,
            tempered_sum,
        ) = ctx.saved_tensors
        own = plain_shares * (plain.unsqueeze(2) / plain_sum)
        own.addcmul_(tempered_shares, tempered.unsqueeze(2) / (ctx.temperature * tempered_sum))
        own.addcmul_(inside, total.unsqueeze(2))
        gradient = into_gradient(kept_probs(ctx, logits, 1.0), norm)
        gradient.scatter_add_(1, columns_of(columns), columns_of(own))
        gradient.scatter_add_(1, columns_of(ids), columns_of(picked))
        return gradient.to(logits.dtype), None, None, None, None


def support_statistics(
    logits: Tensor, columns: Tensor, inside: Tensor, ids: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return what a loss over supports needs of the logits.

    Args:
        logits: (B, C); half precision is raised to float32.
        columns: (T, B, S) int64 class ids of each row's supports, padded with any id.
        inside: (T, B, S), 1 where `columns` is a class, 0 where it is padding; at least one class
            a row.
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
