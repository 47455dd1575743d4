"""Sparse soft labels as the losses compute with them.

In: `SparseTargets`, numbers that are finite everywhere, and the shares of teachers in a row. Left
out: labels as they are stored and fetched (soft_label_batch.py), and the losses (divergences.py).
At 1,000 classes these few small tensors cost as much as the softmax of the student, so there are
no more of them than needed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pipeline.numerics.soft_label_batch import SoftLabelBatch
from pipeline.numerics.supports import SupportTable


def shares_of_teachers(teacher: Tensor, shares: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return the (T, B) share of each teacher in its row; 0 where there is none.

    Args:
        teacher: (T, B) index; -1 where none.
        shares: (T, B), of sum 1 over the teachers of a row; None: all alike.
        dtype: Of the result.
    """
    present = (teacher >= 0).to(dtype)
    if shares is not None:
        return present * shares.to(dtype)
    return present if len(teacher) == 1 else present / present.sum(dim=0).clamp(min=1)


@dataclass(frozen=True, kw_only=True)
class SparseTargets:
    """What T teachers say of B rows, in the type of the loss.

    Attributes:
        stored: (T, B, K) bool.
        probs: (T, B, K); 0 where nothing is stored.
        log_probs: (T, B, K) their logs, finite; of any value where nothing is stored.
        tail: (T, B) mass of the classes that are not stored; 0 where there is no such class.
        count: (T, B) number of those classes, at least 1.
        each: (T, B) what each of them has under the uniform tail.
    """

    stored: Tensor
    probs: Tensor
    log_probs: Tensor
    tail: Tensor
    count: Tensor
    each: Tensor

    @classmethod
    def from_labels(
        cls, soft: SoftLabelBatch, supports: SupportTable, dtype: torch.dtype
    ) -> SparseTargets:
        """Return the labels of (T, B) teachers whose supports are in the table."""
        stored = soft.ids >= 0
        unstored = supports.sizes_of(soft.teacher) - stored.sum(dim=2)
        count = unstored.clamp(min=1).to(dtype)
        # exp(-inf) is 0 where nothing is stored.
        tail = soft.log_tail.to(dtype).exp().mul_(unstored > 0)
        log_probs = soft.log_probs.to(dtype)
        return cls(
            stored=stored,
            probs=log_probs.exp(),
            log_probs=log_probs.clamp(min=torch.finfo(dtype).min),
            tail=tail,
            count=count,
            each=tail / count,
        )

    def renormalised(self) -> SparseTargets:
        """Return them without a tail, what is stored summing to 1."""
        mass = self.probs.sum(dim=2, keepdim=True)
        mass = mass.clamp(min=torch.finfo(mass.dtype).tiny)
        nothing = torch.zeros_like(self.tail)
        return replace(
            self,
            probs=self.probs / mass,
            log_probs=self.log_probs - mass.log(),
            tail=nothing,
            each=nothing,
        )

    @property
    def negative_entropy(self) -> Tensor:
        """(T, B) sum of p log p, under the uniform tail."""
        known = (self.probs * self.log_probs).sum(dim=2)
        return known + torch.xlogy(self.tail, self.each)

    @property
    def above_each(self) -> Tensor:
        """(T, B, K) what the stored classes have above `each`; 0 where nothing is stored."""
        return (self.probs - self.each.unsqueeze(2)).mul_(self.stored)
