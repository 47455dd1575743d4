"""KL against a teacher's distribution whose classes are weighted, from sparse soft labels.

In: `reweighted_kl`. Left out: where the weights come from (pipeline.objectives.balanced). The tail
is spread evenly over the classes of the support that are not stored, each of which then gets its
own weight. That is exact where all classes are stored, and an estimate of them elsewhere.

The largest tensors are (T, B, S), S = classes of the largest teacher.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.numerics.lookup import pick_and_normalise
from pipeline.numerics.soft_label_batch import SoftLabelBatch
from pipeline.numerics.supports import SupportTable


def reweighted_kl(
    logits: Tensor,
    soft: SoftLabelBatch,
    supports: SupportTable,
    log_weights: Tensor,
    *,
    temperature: float = 1.0,
) -> Tensor:
    """Return KL(p || student) per row for p = normalise_c(w_c * teacher_c).

    Args:
        logits: (B, C) student logits, not divided by the temperature.
        soft: Soft labels decoded at `temperature`.
        supports: The teachers' supports.
        log_weights: (C,) log w; the same number for all classes changes nothing.
        temperature: Divides the student's logits.

    Returns:
        (B,) in nats, averaged over the teachers of the row; 0 for rows without one. Not scaled by
        T^2.
    """
    teacher = soft.teacher.clamp(min=0)
    columns, inside = supports.columns[teacher], supports.inside[teacher] > 0
    chosen, log_norm = pick_and_normalise(logits, columns, temperature)
    log_probs = _over_support(soft, supports).to(chosen) + log_weights.to(chosen)[columns]
    present = soft.teacher >= 0
    # Rows without a teacher take any distribution, and their divergence is dropped below.
    log_probs = torch.where(present.unsqueeze(2), log_probs, 0.0).masked_fill(~inside, -torch.inf)
    log_target = log_probs.log_softmax(dim=2)
    target = log_target.exp()
    log_student = chosen - log_norm.unsqueeze(1)
    divergence = -torch.special.entr(target) - target * log_student
    total = torch.where(present, divergence.sum(dim=2), 0.0).sum(dim=0)
    return total / present.sum(dim=0).clamp(min=1)


def _over_support(soft: SoftLabelBatch, supports: SupportTable) -> Tensor:
    """Return (T, B, S) log probabilities of all classes of each teacher; -inf for padding."""
    rows = supports.rows(soft.teacher)
    stored = soft.ids >= 0
    unstored = supports.sizes[soft.teacher.clamp(min=0)] - stored.sum(dim=2)
    each = (soft.log_tail - unstored.clamp(min=1).log()).unsqueeze(2)
    found = each.masked_fill(unstored.unsqueeze(2) == 0, -torch.inf).expand(rows.shape)
    # One place more, for ids that are absent.
    found = functional.pad(found.masked_fill(rows == supports.num_classes, -torch.inf), (0, 1))
    places = torch.searchsorted(
        rows, soft.ids.masked_fill(~stored, supports.num_classes).contiguous()
    )
    absent = torch.full_like(places, rows.shape[2])
    log_probs = soft.log_probs.to(found)
    return found.scatter(2, torch.where(stored, places, absent), log_probs)[..., :-1]
