"""Softmax of logits with its normaliser, a few rows at a time, in one buffer of their size.

In: what the losses on sparse targets (cross_entropy.py, lookup.py) share. On a CPU the speed of a
loss over many classes is that of memory: a block of rows that stays in the cache is read from
memory once for all that is asked of it, and the probabilities that the forward pass leaves behind
become the gradient in place. `torch.nn.functional.cross_entropy` takes three buffers for the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

# float32: a block and its probabilities fill 8 MiB of cache. A GPU wants few and large kernels.
_BLOCK_ELEMENTS = {"cpu": 1 << 20}
_BLOCK_ELEMENTS_ELSEWHERE = 1 << 26


def row_blocks(logits: Tensor) -> Iterator[slice]:
    """Yield slices of the rows of (B, C) logits, of at least one row each."""
    elements = _BLOCK_ELEMENTS.get(logits.device.type, _BLOCK_ELEMENTS_ELSEWHERE)
    rows = max(1, elements // max(1, logits.shape[1]))
    for start in range(0, len(logits), rows):
        yield slice(start, start + rows)


def raised(dtype: torch.dtype) -> torch.dtype:
    """Return the type that half precision is raised to; others stay."""
    return torch.float32 if dtype.itemsize < 4 else dtype


def softmax_with_norm(
    logits: Tensor, temperature: float, *, with_sum: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Return softmax(x / T), logsumexp(x / T) and, where it is wanted, the sum of x / T.

    Args:
        logits: (B, C); half precision is raised to float32 block by block.
        temperature: T.
        with_sum: Without it the third result is empty.

    Returns:
        (B, C) probabilities, (B,) normaliser, (B,) or (0,) sums.
    """
    dtype = raised(logits.dtype)
    probs = torch.empty_like(logits, dtype=dtype)
    norms = probs.new_empty(len(logits))
    sums = probs.new_empty(len(logits) if with_sum else 0)
    for part in row_blocks(logits):
        scores = logits[part].to(dtype)
        if temperature != 1:
            scores = scores / temperature
        torch.softmax(scores, 1, out=probs[part])
        # The largest probability is 1 / sum(exp(x - max)): there is no second pass of exp.
        torch.sub(scores.amax(1), probs[part].amax(1).log_(), out=norms[part])
        if with_sum:
            torch.sum(scores, 1, out=sums[part])
    return probs, norms, sums


def kept_probs(ctx: Any, logits: Tensor, temperature: float) -> Tensor:
    """Return the probabilities that the forward pass left in `ctx.probs`, for the caller to keep.

    A second backward pass through the same graph (`retain_graph`) finds that the first has turned
    them into its gradient, and gets new ones.
    """
    probs, ctx.probs = ctx.probs, None
    if probs is None:
        probs, _, _ = softmax_with_norm(logits, temperature)
    kept: Tensor = probs
    return kept


def into_gradient(probs: Tensor, scale: Tensor, everywhere: Tensor | None = None) -> Tensor:
    """Return probs * scale - everywhere, in place.

    Args:
        probs: (B, C).
        scale: (B,).
        everywhere: (B,); None: 0.
    """
    for part in row_blocks(probs):
        block = probs[part].mul_(scale[part].unsqueeze(1))
        if everywhere is not None:
            block.sub_(everywhere[part].unsqueeze(1))
    return probs
