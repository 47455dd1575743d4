"""Targets that must be there, each returned or with how to get it; and means over a batch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed
from torch import Tensor

from pipeline.numerics import SoftLabelBatch, SupportTable
from pipeline.objectives.base import BlockFeatureBatch, LabelContext, SumsOverRows, TargetBatch
from storage_schemas.errors import TrainingError


def required_labels(targets: TargetBatch, objective: str) -> Tensor:
    """Return the (B,) hard labels.

    Raises:
        TrainingError: If the source provides none.
    """
    if targets.labels is None:
        raise TrainingError(
            f"objective {objective!r} needs hard labels, got none: the manifest has no labelled "
            "images. Sort the images into class folders, or set hard_weight to 0"
        )
    return targets.labels


def required_soft_labels(targets: TargetBatch, objective: str) -> SoftLabelBatch:
    """Return the soft labels.

    Raises:
        TrainingError: If the source provides none.
    """
    if targets.soft is None:
        raise TrainingError(
            f"objective {objective!r} needs soft labels, got none: run `concentrate label`, or "
            "choose objective hard_labels"
        )
    return targets.soft


def required_features(targets: TargetBatch, objective: str) -> Mapping[str, BlockFeatureBatch]:
    """Return the stored block features.

    Raises:
        TrainingError: If the source provides none.
    """
    if targets.features is None:
        raise TrainingError(
            f"objective {objective!r} needs block features, got none: list what to keep of each "
            "teacher under teachers[].features and run `concentrate label`"
        )
    return targets.features


class Supports:
    """The supports of the teachers, kept on the device of the logits."""

    def __init__(self, context: LabelContext) -> None:
        self._table = SupportTable.from_supports(context.supports, context.num_classes)

    def table(self, logits: Tensor) -> SupportTable:
        """Return the table on the device of the logits."""
        if self._table.ids.device != logits.device:
            self._table = self._table.to(logits.device)
        return self._table


def batch_mean(total: Tensor, count: Tensor) -> Tensor:
    """Return `total / count` for a batch that may be shared by several ranks.

    Each rank has the sum and the count of its own rows. It gets its sum over the count of all
    ranks, times the number of ranks: the mean of that over the ranks, which is what
    DistributedDataParallel takes of gradients, is the mean over the whole batch, however
    unevenly the rows that count are spread. Every rank must call it, in the same order.

    Args:
        total: () sum over the rows that count.
        count: () their number or weight; 0 gives 0.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return total / count.clamp(min=1)
    count = count.detach().clone()
    torch.distributed.all_reduce(count)
    return total * torch.distributed.get_world_size() / count.clamp(min=1)


def rows_of_all_ranks(values: Tensor) -> tuple[Tensor, int]:
    """Return the (B, ...) values of all ranks' rows, and where this rank's begin.

    No gradient flows through them. Every rank must call it, in the same order.
    """
    values = values.detach()
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return values, 0
    size, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    here = torch.tensor([len(values)], device=values.device)
    sizes = [torch.empty_like(here) for _ in range(size)]
    torch.distributed.all_gather(sizes, here)
    counts = [int(count) for count in sizes]
    padded = values.new_zeros((max(counts), *values.shape[1:]))
    padded[: len(values)] = values
    parts = [torch.empty_like(padded) for _ in range(size)]
    torch.distributed.all_gather(parts, padded)
    found = [part[:count] for part, count in zip(parts, counts, strict=True)]
    return torch.cat(found), sum(counts[:rank])


def mean_terms(objective: SumsOverRows, logits: Tensor, targets: TargetBatch) -> dict[str, Tensor]:
    """Return the terms of an objective, from all logits of a batch."""
    counts = objective.row_counts(targets)
    return {
        name: batch_mean(values.sum(), counts[name].sum())
        for name, values in objective.row_terms(logits, targets).items()
    }


def taught(soft: SoftLabelBatch) -> Tensor:
    """Return (B,) which rows have a teacher."""
    return (soft.teacher >= 0).any(dim=0)


def labelled_mean(values: Tensor, soft: SoftLabelBatch) -> Tensor:
    """Return the mean of (B,) values over the rows that have a teacher."""
    rows = taught(soft)
    return batch_mean((values * rows).sum(), rows.sum())
