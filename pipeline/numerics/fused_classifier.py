"""A linear classifier together with its loss, whose (B, C) logits never exist as a whole.

In: `fused_linear_loss`. A few rows at a time it computes their logits, the loss and its gradient
by them, and adds what that means for features, weight and bias: the backward pass has nothing left
to do but scale. So it takes the same three matrix products as a layer and a loss, and memory for a
block of logits and its gradient instead of a batch. (Computing the logits a second time in the
backward pass, by classes, would need a fourth product.) Left out: the loss of a block, which is
the caller's, e.g. of divergences.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeline.numerics.softmax_rows import raised

# Logits at a time: 32 MiB on a CPU, 512 MiB elsewhere, where products want more rows.
_BLOCK_LOGITS = {"cpu": 1 << 23}
_BLOCK_LOGITS_ELSEWHERE = 1 << 27


def _blocks(rows: int, classes: int, block_logits: int) -> list[slice]:
    """Return slices of the rows, of sizes as equal as can be."""
    count = max(1, -(-rows * classes // block_logits))
    size = max(1, -(-rows // count))
    return [slice(start, start + size) for start in range(0, rows, size)]


class _FusedLinearLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        loss: Callable[[Tensor, slice], Tensor],
        block_logits: int,
    ) -> Tensor:
        wanted = ctx.needs_input_grad[:3]
        # As a layer under autocast: products in the type of the features, sums in that of weights.
        own_weight = weight.to(features.dtype)
        own_bias = None if bias is None else bias.to(features.dtype)
        gradients = [
            torch.zeros_like(tensor) if want and tensor is not None else None
            for want, tensor in zip(wanted, (features, weight, bias), strict=True)
        ]
        by_features, by_weight, by_bias = gradients
        total = features.new_zeros((), dtype=raised(features.dtype))
        blocks = _blocks(len(features), len(weight), block_logits)
        # One buffer for all blocks: a new one each time would be as many page faults.
        buffer = features.new_empty(len(features[blocks[0]]) if blocks else 0, len(weight))
        for part in blocks:
            rows = features[part]
            logits = buffer[: len(rows)].detach()
            if own_bias is None:
                torch.mm(rows, own_weight.t(), out=logits)
            else:
                torch.addmm(own_bias, rows, own_weight.t(), out=logits)
            with torch.enable_grad():
                value = loss(logits.requires_grad_(any(wanted)), part)
            total += value.detach()
            if not any(wanted):
                continue
            (gradient,) = torch.autograd.grad(value, logits)
            del value
            if by_features is not None:
                torch.mm(gradient, own_weight, out=by_features[part])
            if by_weight is not None and by_weight.dtype == gradient.dtype:
                by_weight.addmm_(gradient.t(), features[part])
            elif by_weight is not None:
                by_weight += gradient.t() @ features[part]
            if by_bias is not None:
                by_bias += gradient.sum(0, dtype=by_bias.dtype)
            del gradient  # before the next block makes its own
        ctx.gradients = gradients
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError(
                "the gradients of a fused classifier are made with its loss and given away by the "
                "first backward pass; compute the loss again for a second one"
            )
        # Of a GPU the value is not asked: that would wait for it.
        if upstream.device.type != "cpu" or upstream != 1:
            for gradient in gradients:
                if gradient is not None:
                    gradient.mul_(upstream)
        return *gradients, None, None


def fused_linear_loss(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    loss: Callable[[Tensor, slice], Tensor],
    *,
    block_logits: int | None = None,
) -> Tensor:
    """Return the sum of `loss(x, rows)` over blocks of rows of the logits x = f W^T + b.

    The backward pass may run once: a second one is an error, never a wrong gradient.

    Args:
        features: (B, D) f, float32 or half precision; the products are in its type, as those of
            a layer under autocast are.
        weight: (C, D) W.
        bias: (C,) b, or None.
        loss: From the (R, C) logits of some rows, and which rows they are, to the () sum of what
            these rows add to the loss. Its gradient flows to the logits alone: what else it uses
            is a constant. The next block's logits take the place of these.
        block_logits: At most so many logits at a time; at least one row. None: 32 MiB of float32
            on a CPU, 512 MiB on a GPU.

    Returns:
        (), at least float32.
    """
    if block_logits is None:
        block_logits = _BLOCK_LOGITS.get(features.device.type, _BLOCK_LOGITS_ELSEWHERE)
    with torch.autocast(features.device.type, enabled=False):
        value: Tensor = _FusedLinearLoss.apply(features, weight, bias, loss, block_logits)
    return value
