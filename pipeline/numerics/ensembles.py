"""One soft label out of those of several teachers: one of them, or the mean of all.

In: both, on sparse labels. Left out: which teacher is drawn when (objectives/meal.py).
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.numerics.soft_label_batch import SoftLabelBatch
from pipeline.numerics.supports import SupportTable


def only_teachers(soft: SoftLabelBatch, allowed: Tensor) -> SoftLabelBatch:
    """Return the labels without those of other teachers.

    Args:
        soft: Labels of up to T teachers a row.
        allowed: (M,) bool, whether each of the M teachers counts.
    """
    kept = (soft.teacher >= 0) & allowed[soft.teacher.clamp(min=0)]
    every = kept.unsqueeze(2)
    return SoftLabelBatch(
        ids=soft.ids.masked_fill(~every, -1),
        log_probs=soft.log_probs.masked_fill(~every, -torch.inf),
        log_tail=soft.log_tail.masked_fill(~kept, -torch.inf),
        teacher=soft.teacher.masked_fill(~kept, -1),
    )


def one_teacher(soft: SoftLabelBatch, draw: float) -> SoftLabelBatch:
    """Return, of each row, the label of one of its n teachers: number floor(draw * n).

    Args:
        soft: Labels of up to T teachers a row.
        draw: In [0, 1). A uniform one makes every teacher of a row equally likely.

    Returns:
        Labels of one teacher a row; none where the row has none.
    """
    present = soft.teacher >= 0
    number = (present.sum(dim=0) * draw).long()
    slot = (present & (present.cumsum(dim=0) - 1 == number)).int().argmax(dim=0, keepdim=True)
    columns = slot.unsqueeze(2).expand(-1, -1, soft.ids.shape[2])
    return SoftLabelBatch(
        ids=soft.ids.gather(0, columns),
        log_probs=soft.log_probs.gather(0, columns),
        log_tail=soft.log_tail.gather(0, slot),
        teacher=soft.teacher.gather(0, slot),
    )


def mean_teacher(soft: SoftLabelBatch, supports: SupportTable) -> SoftLabelBatch:
    """Return the mean of the distributions of each row's teachers, as one label.

    A class that one teacher keeps and another does not has, with the latter, an even share of its
    tail. So the mean has up to T * K classes, and beside them an even tail again: nothing is lost.

    Args:
        soft: Labels of up to T teachers a row. The teachers of a row must have the same support.
        supports: Of all teachers.

    Returns:
        Labels of one teacher a row, T * K wide, the most probable class first, under the index of
        one of the row's teachers; none where the row has none.
    """
    t, b, k = soft.ids.shape
    stored, present = soft.ids >= 0, soft.teacher >= 0
    probs = soft.log_probs.masked_fill(~stored, -torch.inf).exp()
    sizes = supports.sizes[soft.teacher.clamp(min=0)]
    unstored = sizes - stored.sum(dim=2)
    share = soft.log_tail.exp() / unstored.clamp(min=1) * (present & (unstored > 0))

    # The union of the kept classes: ascending, each at its first place, absent ids last.
    flat = soft.ids.masked_fill(~stored, supports.num_classes).transpose(0, 1).reshape(b, t * k)
    ascending, order = flat.sort(dim=1)
    new = torch.ones_like(ascending, dtype=torch.bool)
    new[:, 1:] = ascending[:, 1:] != ascending[:, :-1]
    place = torch.empty_like(order).scatter_(1, order, new.cumsum(dim=1) - 1)
    place = place.reshape(b, t, k).transpose(0, 1)
    union = flat.new_full((b, t * k), supports.num_classes).scatter_(
        1, new.cumsum(1) - 1, ascending
    )
    inside = union < supports.num_classes

    own = probs.new_zeros((t, b, t * k)).scatter_add_(2, place, probs)
    kept = probs.new_zeros((t, b, t * k)).scatter_add_(2, place, stored.to(probs.dtype)) > 0
    count = present.sum(dim=0).clamp(min=1)
    mean = torch.where(kept, own, share.unsqueeze(2)).sum(dim=0) / count.unsqueeze(1)
    rest = sizes - inside.sum(dim=1)
    tail = (share * rest).sum(dim=0) / count

    log_probs = mean.masked_fill(~inside, 0.0).log()
    log_probs, ranked = log_probs.sort(dim=1, descending=True, stable=True)
    ids = union.masked_fill(~inside, -1).gather(1, ranked)
    return SoftLabelBatch(
        ids=ids.unsqueeze(0),
        log_probs=log_probs.unsqueeze(0),
        log_tail=tail.log().unsqueeze(0),
        teacher=soft.teacher.amax(dim=0, keepdim=True),
    )
