"""Cross-entropy between a target that is a few numbers a row, and the softmax of dense logits.

In: `sparse_cross_entropy`, value and gradient in one buffer of the size of the logits. Left out:
what the target is (divergences.py).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeline.numerics.softmax_rows import into_gradient, kept_probs, softmax_with_norm


class _SparseCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        columns: Tensor,
        weights: Tensor,
        everywhere: Tensor | None,
        temperature: float,
    ) -> Tensor:
        with_sum = everywhere is not None
        probs, norm, total = softmax_with_norm(logits, temperature, with_sum=with_sum)
        weights = weights.to(probs.dtype)
        picked = logits.gather(1, columns).to(probs.dtype)
        agreed = (weights * picked).sum(1)
        if temperature != 1:
            agreed /= temperature
        mass = weights.sum(1)
        if everywhere is not None:
            everywhere = everywhere.to(probs.dtype)
            mass.add_(everywhere, alpha=logits.shape[1])
            agreed.addcmul_(everywhere, total)
        value = mass * norm - agreed
        if ctx.needs_input_grad[0]:
            ctx.probs, ctx.temperature = probs, temperature
            ctx.save_for_backward(logits, columns, weights, everywhere, mass)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None, None]:
        logits, columns, weights, everywhere, mass = ctx.saved_tensors
        scale = upstream if ctx.temperature == 1 else upstream / ctx.temperature
        gradient = into_gradient(
            kept_probs(ctx, logits, ctx.temperature),
            mass * scale,
            None if everywhere is None else everywhere * scale,
        )
        gradient.scatter_add_(1, columns, weights * scale.neg().unsqueeze(1))
        return gradient.to(logits.dtype), None, None, None, None


def sparse_cross_entropy(
    logits: Tensor,
    columns: Tensor,
    weights: Tensor,
    everywhere: Tensor | None = None,
    *,
    temperature: float = 1.0,
) -> Tensor:
    """Return -sum_c t_c log softmax(x / T)_c per row, with t = everywhere + weights at columns.

    Gradients flow to the logits only, and can not be differentiated again. The target needs not
    sum to 1.

    Args:
        logits: (B, C) x; half precision is raised to float32, and gets a gradient of its type.
        columns: (B, N) int64 in 0..C-1; weights of an id that appears twice add up.
        weights: (B, N).
        everywhere: (B,) what every class has besides; None: 0.
        temperature: T.

    Returns:
        (B,) in nats, at least float32.

    Raises:
        ValueError: If the target wants a gradient.
    """
    if weights.requires_grad or (everywhere is not None and everywhere.requires_grad):
        raise ValueError("the target must not require a gradient; detach it")
    value: Tensor = _SparseCrossEntropy.apply(logits, columns, weights, everywhere, temperature)
    return value
