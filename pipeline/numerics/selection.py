"""The selections other than top-k: the nucleus of a distribution, and draws from it.

In: `nucleus` (top_p) and `draw_counts` (sampled). Left out: top-k and the tail (sparsify.py), the
random bits (storage_schemas.label_draws), quantisation (storage_schemas.soft_labels).

Both add probabilities up, which is done in float64 and a few rows at a time: at 100,000 classes a
float32 sum is wrong by more than a rare class has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pipeline.numerics.sparsify import SparseLogits, check_arguments, log_tail_ratios, top_ids

# Of float64: 32 MiB a tensor.
_ELEMENTS_AT_ONCE = 1 << 22


def _parts(logits: Tensor, temperature: float) -> Iterator[tuple[slice, Tensor]]:
    """Yield softmax(logits / temperature) in float64, a few rows at a time."""
    rows = max(_ELEMENTS_AT_ONCE // logits.shape[1], 1)
    for start in range(0, len(logits), rows):
        part = slice(start, start + rows)
        yield part, (logits[part].double() / temperature).softmax(dim=1)


def nucleus(logits: Tensor, k: int, top_p: float, temperatures: Sequence[float]) -> SparseLogits:
    """Keep the fewest largest logits of each row whose mass reaches `top_p`, and at most k.

    Holtzman et al., "The Curious Case of Neural Text Degeneration", ICLR 2020, section 3.1.

    Args:
        logits: (B, C_t) finite.
        k: At most so many classes; C_t where there are fewer.
        top_p: Mass in (0, 1] of softmax at the first of the temperatures.
        temperatures: At which the tail is needed.

    Returns:
        Rows of 1 to k classes.

    Raises:
        ValueError: If the arguments are out of range.
    """
    check_arguments(logits, k, temperatures)
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must be in (0, 1], got {top_p}")
    logits = logits.float()
    ids, values = top_ids(logits, min(k, logits.shape[1]))
    size = ids.new_ones((len(ids), 1))
    for part, probs in _parts(logits, temperatures[0]):
        mass = probs.gather(1, ids[part]).cumsum(dim=1)
        # Rank 0 is kept, and every rank whose predecessors fall short.
        size[part] += (mass[:, :-1] < top_p).sum(dim=1, keepdim=True)
    kept = torch.arange(ids.shape[1], device=ids.device) < size
    ratios = log_tail_ratios(
        logits,
        torch.where(kept, ids, ids[:, :1]),
        values[:, :1],
        values.gather(1, size.clamp(max=values.shape[1] - 1)),
        temperatures,
    )
    return SparseLogits(
        ids=ids.masked_fill(~kept, -1), logits=logits.gather(1, ids), log_tail_ratio=ratios
    )


def draw_counts(logits: Tensor, uniforms: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Draw classes from softmax(logits / temperature), and count them.

    Anshumann et al., "Sparse Logit Sampling: Accelerating Knowledge Distillation in LLMs", ACL
    2025, with the teacher's distribution itself as proposal: then every draw has the same weight,
    and count / K is an unbiased estimate of the distribution. Each draw is the inverse of the
    cumulative distribution at one uniform, so that equal uniforms give equal labels. (On CUDA the
    order in which torch adds up is not fixed: a uniform within some 1e-16 of an edge may fall on
    either side of it.)

    Args:
        logits: (B, C_t) finite.
        uniforms: (B, K) float64 in (0, 1), one a draw.
        temperature: At which the classes are drawn.

    Returns:
        (B, K) int64 ids of the different classes, most frequent first, equal counts by rising id,
        -1 after the last; (B, K) int64 counts, 0 after the last.

    Raises:
        ValueError: If the arguments are out of range.
    """
    check_arguments(logits, uniforms.shape[1], [temperature])
    drawn = torch.empty_like(uniforms, dtype=torch.int64)
    for part, probs in _parts(logits, temperature):
        cumulative = probs.cumsum(dim=1)
        places = uniforms[part] * cumulative[:, -1:]
        # The first class whose cumulative mass is above the place: never one without mass.
        drawn[part] = torch.searchsorted(cumulative, places, right=True)
    return count_draws(drawn)


def count_draws(drawn: Tensor) -> tuple[Tensor, Tensor]:
    """Return the (B, K) ids and counts of (B, K) drawn classes, as `draw_counts` returns them."""
    ordered = drawn.sort(dim=1).values
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    run = first.cumsum(dim=1) - 1
    counts = torch.zeros_like(ordered).scatter_add_(1, run, torch.ones_like(ordered))
    ids = torch.full_like(ordered, -1).scatter_(1, run, ordered)
    # Runs are in the order of their ids; a stable sort keeps that among equal counts.
    counts, order = counts.sort(dim=1, descending=True, stable=True)
    return ids.gather(1, order), counts
