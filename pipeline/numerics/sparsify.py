"""From a teacher's dense logits to the sparse values that are stored.

In: the top-k logits with their class ids, and the exact mass outside them. Left out: the other
selections (selection.py), quantisation (storage_schemas.soft_labels) and the check that logits are
finite (pipeline.teachers).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class SparseLogits:
    """The classes that are kept of B logit vectors.

    Attributes:
        ids: (B, K) int64 teacher-local class ids, largest logit first, equal logits by lower id;
            -1 from the first rank on that is not kept.
        logits: (B, K) float32, not increasing; of any value where the id is -1.
        log_tail_ratio: (B, number of temperatures) float32: log p_1 - log(mass outside the kept
            classes) of softmax(logits / T); +inf where there is no such mass.
    """

    ids: Tensor
    logits: Tensor
    log_tail_ratio: Tensor


def top_ids(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return (B, k) ids by falling logit, equal logits by rising id, and the k + 1 largest logits.

    `torch.topk` leaves the order and the choice among equal logits open. Rows in which two
    neighbours of the first k + 1 are equal are sorted in full; other rows have but one order.
    """
    values, ids = logits.topk(min(k + 1, logits.shape[1]), dim=1)
    tied = (values[:, 1:] == values[:, :-1]).any(dim=1)
    ids = ids[:, :k].contiguous()
    if bool(tied.any()):
        ids[tied] = logits[tied].sort(dim=1, descending=True, stable=True).indices[:, :k]
    return ids, values


def log_tail_ratios(
    logits: Tensor, ids: Tensor, top: Tensor, next_logit: Tensor, temperatures: Sequence[float]
) -> Tensor:
    """Return (B, temperatures): log p_1 - log(mass outside the kept classes).

    The tail is a logsumexp over the other classes, not 1 minus the kept mass, which in float32
    would be rounding noise below 1e-7.

    Args:
        logits: (B, C_t) float32.
        ids: (B, K) kept classes; a place that keeps none repeats a kept one.
        top: (B, 1) largest logit.
        next_logit: (B, 1) largest logit that is not kept, so that no pass has to look for it.
        temperatures: At which the tail is needed.
    """
    distance = (logits - next_logit).scatter_(1, ids, -torch.inf)
    lead = (top - next_logit).squeeze(1)
    ratios = logits.new_empty((len(logits), len(temperatures)))
    for column, temperature in enumerate(temperatures):
        scaled = distance if temperature == 1 else distance / temperature
        ratios[:, column] = lead / temperature - scaled.exp().sum(dim=1).log()
    return ratios


def sparsify(
    logits: Tensor,
    k: int,
    temperatures: Sequence[float],
    activation: Literal["softmax", "sigmoid"] = "softmax",
) -> SparseLogits:
    """Keep the k largest logits of each row, and the mass of the others.

    Args:
        logits: (B, C_t) finite.
        k: Kept classes; C_t where there are fewer.
        temperatures: At which the tail is needed.
        activation: Under `sigmoid` what is not kept counts as 0, so the ratio is +inf.

    Raises:
        ValueError: If the arguments are out of range.
    """
    check_arguments(logits, k, temperatures)
    logits = logits.float()
    batch, classes = logits.shape
    ids, values = top_ids(logits, min(k, classes))
    top = logits.gather(1, ids)
    if k < classes and activation == "softmax":
        ratios = log_tail_ratios(logits, ids, top[:, :1], values[:, -1:], temperatures)
    else:
        ratios = logits.new_full((batch, len(temperatures)), torch.inf)
    return SparseLogits(ids=ids, logits=top, log_tail_ratio=ratios)


def check_arguments(logits: Tensor, k: int, temperatures: Sequence[float]) -> None:
    """Refuse arguments that no selection can use.

    Raises:
        ValueError: If one is out of range.
    """
    if logits.ndim != 2 or logits.shape[1] == 0:
        raise ValueError(f"logits must be (B, C_t), got shape {tuple(logits.shape)}")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if any(temperature <= 0 for temperature in temperatures):
        raise ValueError(f"temperatures must be positive, got {list(temperatures)}")
