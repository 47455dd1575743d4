"""How difficult the teachers find a sample, from sparse soft labels.

In: the probability of the hard label, and the entropy, both with the tail spread evenly over the
classes of the support that are not stored. Left out: what is done about it
(pipeline.objectives.curriculum).
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.numerics.soft_label_batch import SoftLabelBatch
from pipeline.numerics.supports import SupportTable


def true_class_probability(soft: SoftLabelBatch, labels: Tensor, supports: SupportTable) -> Tensor:
    """Return the (B,) probability of the hard label, the mean over the teachers of each row.

    It is 0 for a label outside a teacher's support, for rows without a teacher, and for label -1.

    Args:
        soft: Soft labels; under sigmoid the probability of that class alone, 0 if not stored.
        labels: (B,) hard labels.
        supports: The teachers' supports.
    """
    own = labels.reshape(1, -1, 1)
    stored = (soft.ids == own) & (own >= 0)
    found = soft.log_probs.exp().masked_fill(~stored, 0.0).sum(dim=2)
    inside = (supports.rows(soft.teacher) == own).any(dim=2)
    in_tail = inside & ~stored.any(dim=2)
    each = soft.log_tail.exp() / _unstored(soft, supports).clamp(min=1)
    return _mean(found + torch.where(in_tail, each, 0.0), soft.teacher)


def sparse_entropy(soft: SoftLabelBatch, supports: SupportTable) -> Tensor:
    """Return the (B,) entropy in nats, the mean over the teachers of each row; 0 without one."""
    stored = soft.ids >= 0
    log_probs = torch.where(stored, soft.log_probs, 0.0)
    probs = soft.log_probs.exp().masked_fill(~stored, 0.0)
    unstored = _unstored(soft, supports)
    has_tail = (soft.log_tail > -torch.inf) & (unstored > 0)
    log_each = torch.where(has_tail, soft.log_tail - unstored.clamp(min=1).log(), 0.0)
    tail = torch.where(has_tail, soft.log_tail.exp(), 0.0)
    return _mean(-(probs * log_probs).sum(dim=2) - tail * log_each, soft.teacher)


def _unstored(soft: SoftLabelBatch, supports: SupportTable) -> Tensor:
    return supports.sizes[soft.teacher.clamp(min=0)] - (soft.ids >= 0).sum(dim=2)


def _mean(values: Tensor, teacher: Tensor) -> Tensor:
    present = teacher >= 0
    return torch.where(present, values, 0.0).sum(dim=0) / present.sum(dim=0).clamp(min=1)
