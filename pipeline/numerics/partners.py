"""Partners of a sample among samples of its class: the nearest, random ones, or all of them.

In: who may be a partner, and the weights of the chosen ones. Left out: what is drawn towards them
(pipeline.objectives.online_subclass).
"""

from __future__ import annotations

import torch
from torch import Tensor


def same_class(labels: Tensor, candidates: Tensor, first: int) -> Tensor:
    """Return (B, N) bool: which candidates are of the class of each row, the row itself apart.

    Args:
        labels: (B,) class of each row; -1: none, and so no partner.
        candidates: (N,) class of each candidate.
        first: Row i is candidate `first + i`.
    """
    allowed = (labels.unsqueeze(1) == candidates) & (labels >= 0).unsqueeze(1)
    itself = torch.arange(len(labels), device=labels.device)
    allowed[itself, first + itself] = False
    return allowed


def best_partners(scores: Tensor, allowed: Tensor, count: int) -> Tensor:
    """Return (B, N) weights of the `count` allowed candidates of the highest scores, each equal.

    A row with fewer candidates has all of them. Its weights sum to 1, and to 0 without any.

    Args:
        scores: (B, N), e.g. similarities, or random numbers.
        allowed: (B, N) bool.
        count: At least 1.
    """
    best = scores.masked_fill(~allowed, -torch.inf).topk(min(count, scores.shape[1]), dim=1)
    chosen = torch.zeros_like(scores)
    return equal_weights(chosen.scatter(1, best.indices, (best.values > -torch.inf).to(chosen)))


def equal_weights(chosen: Tensor) -> Tensor:
    """Return (B, N) equal weights of the chosen candidates (1, else 0); rows sum to 1 or 0."""
    return chosen / chosen.sum(dim=1, keepdim=True).clamp(min=1)
