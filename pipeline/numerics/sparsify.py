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

from pipeline.numerics.softmax_rows import row_blocks

# Candidates are looked for where they are a small share of a row: (k + 1) * stride logits.
_PARTS_PER_RANK = 4
_MANY_CLASSES = 1 << 15


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


def _candidates(logits: Tensor, k: int) -> Tensor | None:
    """Return (B, N) ids among which the k largest logits are, ties aside; None for all.

    A row is cut into parts of a few logits each, known by their largest one. Of the parts at most
    k - 1 can be above that of rank k, so the k largest parts hold all k. This reads a row once,
    with the speed of memory, where `torch.topk` copies it together with its indices.
    """
    stride = 16 if logits.shape[1] >= _MANY_CLASSES else 8
    parts = logits.shape[1] // stride
    if parts < _PARTS_PER_RANK * k:
        return None
    width = parts * stride
    largest = logits[:, :width].view(-1, stride, parts).amax(dim=1)
    members = largest.topk(k, dim=1, sorted=False).indices
    step = torch.arange(0, width, parts, device=logits.device)
    rest = torch.arange(width, logits.shape[1], device=logits.device).expand(len(logits), -1)
    return torch.cat([(members.unsqueeze(1) + step.unsqueeze(1)).flatten(1), rest], dim=1)


def top_ids(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return (B, k) ids by falling logit, equal logits by rising id, and the k + 1 largest logits.

    `torch.topk` leaves the order and the choice among equal logits open, and so does the choice
    of candidates. Only rows in which two neighbours of the first k + 1 are equal have more than
    one order. Teachers in half precision have many such rows.
    """
    ranks = min(k + 1, logits.shape[1])
    among = _candidates(logits, ranks)
    if among is None:
        values, ids = logits.topk(ranks, dim=1)
    else:
        values, places = logits.gather(1, among).topk(ranks, dim=1)
        ids = among.gather(1, places)
    tied = values[:, 1:] == values[:, :-1]
    ids = ids[:, :k].contiguous()
    if bool(tied.any()):
        if ranks > k:
            at_the_cut = tied[:, -1].nonzero().squeeze(1)
            for part in row_blocks(logits):
                rows = at_the_cut[part]
                ids[rows] = _lowest_at_the_cut(logits[rows], ids[rows], values[rows, :k])
        ids = _in_order(logits, ids)
    return ids, values


def _lowest_at_the_cut(logits: Tensor, ids: Tensor, values: Tensor) -> Tensor:
    """Return the ids with those of logits equal to the k-th replaced by the lowest such ids."""
    classes = logits.shape[1]
    cut = values[:, -1:]
    height = torch.arange(classes, 0, -1, device=logits.device, dtype=torch.int32)
    lowest = torch.where(logits == cut, height, 0).topk(ids.shape[1], dim=1).indices
    rank = (values == cut).cumsum(dim=1) - 1
    return torch.where(rank < 0, ids, lowest.gather(1, rank.clamp(min=0)))


def _in_order(logits: Tensor, ids: Tensor) -> Tensor:
    """Return the ids by falling logit, equal logits by rising id."""
    ids = ids.sort(dim=1).values
    order = logits.gather(1, ids).sort(dim=1, descending=True, stable=True).indices
    return ids.gather(1, order)


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
    ratios = logits.new_empty((len(logits), len(temperatures)))
    lead = (top - next_logit).squeeze(1)
    for part in row_blocks(logits):
        others = logits[part].scatter(1, ids[part], -torch.inf)
        for column, temperature in enumerate(temperatures):
            scaled = others if temperature == 1 else others / temperature
            # The largest of the others has the log-probability -log sum(exp(x - largest)).
            own = scaled.log_softmax(dim=1).amax(dim=1)
            ratios[part, column] = lead[part] / temperature + own
    # Where nothing is left, torch calls the log-probabilities nan.
    return ratios.nan_to_num_(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)


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
