"""Losses of dense student logits against sparse soft labels.

In: Kullback-Leibler divergence with three treatments of the tail, binary cross-entropy, and the
mass that the student gives to a teacher's support. Left out: the factor T^2 of Hinton et al. 2015
(arXiv 1503.02531, section 2) and means over the batch, which belong to the objectives.

Beside the gradient of the logits nothing of their size is built. The largest other tensors are,
where a tail or a support is involved and the teachers do not know all classes, the (T, B, S)
logits of the supports, S = classes of the largest teacher. Half-precision logits are raised to
float32 first.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.numerics.cross_entropy import sparse_cross_entropy
from pipeline.numerics.lookup import columns_of, pick, pick_and_normalise, support_statistics
from pipeline.numerics.soft_label_batch import SoftLabelBatch
from pipeline.numerics.softmax_rows import raised
from pipeline.numerics.sparse_targets import SparseTargets, shares_of_teachers
from pipeline.numerics.supports import SupportTable

Tail = Literal["uniform", "bucket", "drop"]
Over = Literal["all", "support"]


def _mean_over_teachers(values: Tensor, teacher: Tensor, shares: Tensor) -> Tensor:
    """Average (T, B) values by (T, B) shares; they may be of any value where there is none."""
    return _summed(torch.where(teacher >= 0, values, 0.0) * shares)


def _summed(values: Tensor) -> Tensor:
    """Return the sum of (T, B) values over T; of one teacher a view, without a kernel."""
    return values[0] if len(values) == 1 else values.sum(dim=0)


def _unstored(rows: Tensor, soft: SoftLabelBatch, num_classes: int) -> Tensor:
    """Return (T, B, S) which places of the supports are classes that are not stored."""
    stored = soft.ids >= 0
    places = torch.searchsorted(rows, soft.ids.masked_fill(~stored, num_classes).contiguous())
    # One place more, for ids that are absent.
    mask = functional.pad(rows, (0, 1), value=num_classes) < num_classes
    absent = torch.full_like(places, rows.shape[2])
    return mask.scatter(2, torch.where(stored, places, absent), False)[..., :-1]


def sparse_kl(
    logits: Tensor,
    soft: SoftLabelBatch,
    supports: SupportTable,
    *,
    temperature: float = 1.0,
    tail: Tail = "uniform",
    over: Over = "all",
    shares: Tensor | None = None,
) -> Tensor:
    """Return KL(teacher || student) per row, averaged over the teachers of the row.

    The teacher's distribution has its stored probabilities, its tail on the classes of its
    support that are not stored, and 0 outside its support. The tail is

    - `uniform`: spread evenly over those classes;
    - `bucket`: compared as one event with the student's mass on those classes;
    - `drop`: left out, the stored probabilities renormalised to 1. Student mass on the classes
      that are not stored is then pushed down like mass outside the support.

    Args:
        logits: (B, C) student logits, not divided by the temperature.
        soft: Soft labels decoded at `temperature`.
        supports: The teachers' supports.
        temperature: Divides the student's logits.
        tail: What the teacher's unstored mass means.
        over: `all`: the student's softmax is over all C classes. `support`: over the teacher's
            support only, so nothing is said about how much mass the support gets.
        shares: (T, B) of each teacher in the average; None: all alike.

    Returns:
        (B,) in nats; 0 for rows without a teacher. Not scaled by T^2.
    """
    dtype = raised(logits.dtype)
    targets = SparseTargets.from_labels(soft, supports, dtype)
    if tail == "drop":
        targets = targets.renormalised()
    if supports.whole:
        over = "all"
    share = shares_of_teachers(soft.teacher, shares, dtype)
    if over == "support" or tail == "bucket":
        divergence = _kl_by_events(logits, soft, supports, targets, temperature, tail, over)
        return _mean_over_teachers(divergence, soft.teacher, share)

    # Such a divergence is one weighted sum of log-probabilities, over all teachers of the row.
    known = _summed(targets.negative_entropy * share)
    columns, weights = soft.ids.clamp(min=0), targets.above_each * share.unsqueeze(2)
    everywhere = None
    if tail == "uniform":
        each = targets.each * share
        if supports.whole:
            everywhere = _summed(each)
        else:
            teacher = soft.teacher.clamp(min=0)
            columns = torch.cat([columns, supports.columns[teacher]], dim=2)
            spread = supports.inside[teacher].to(dtype) * each.unsqueeze(2)
            weights = torch.cat([weights, spread], dim=2)
    return known + sparse_cross_entropy(
        logits, columns_of(columns), columns_of(weights), everywhere, temperature=temperature
    )


def _kl_by_events(
    logits: Tensor,
    soft: SoftLabelBatch,
    supports: SupportTable,
    targets: SparseTargets,
    temperature: float,
    tail: Tail,
    over: Over,
) -> Tensor:
    """Return (T, B) `sparse_kl` from the logits of all classes of the supports."""
    rows = supports.rows(soft.teacher)
    ids = torch.cat([soft.ids.clamp(min=0), rows.clamp(max=supports.num_classes - 1)], dim=2)
    if over == "all":
        picked, log_norm = pick_and_normalise(logits, ids, temperature)
    else:
        picked = pick(logits, ids).to(targets.probs.dtype) / temperature
    chosen, values = picked.tensor_split([soft.ids.shape[2]], dim=2)
    if over == "support":
        log_norm = values.masked_fill(rows == supports.num_classes, -torch.inf).logsumexp(dim=2)
    agreed = (targets.probs * (chosen - log_norm.unsqueeze(-1))).sum(dim=2)
    if tail == "bucket":
        known = (targets.probs * targets.log_probs).sum(dim=2)
        known = known + torch.xlogy(targets.tail, targets.tail)
        rest = values.masked_fill(~_unstored(rows, soft, supports.num_classes), -torch.inf)
        rest = torch.where(targets.tail > 0, rest.logsumexp(dim=2), 0.0)
        return known - agreed - targets.tail * (rest - log_norm)
    if tail == "uniform":
        unstored = _unstored(rows, soft, supports.num_classes)
        mean = torch.where(unstored, values, 0.0).sum(dim=2) / targets.count
        agreed = agreed + targets.tail * (mean - log_norm)
    return targets.negative_entropy - agreed


def support_log_mass(
    logits: Tensor, teacher: Tensor, supports: SupportTable, *, shares: Tensor | None = None
) -> Tensor:
    """Return the log of the student's softmax mass on each teacher's support.

    With the KL inside the support it makes the chain rule: for a teacher that is 0 outside its
    support, KL over all classes = KL over the support - this log mass.

    Args:
        logits: (B, C).
        teacher: (T, B) int64 teacher index; -1 where none.
        supports: The teachers' supports.
        shares: (T, B) of each teacher in the average; None: all alike.

    Returns:
        (B,) at most 0, averaged over the teachers of the row; 0 for rows without a teacher.
    """
    if supports.whole:
        return logits.new_zeros(len(logits), dtype=raised(logits.dtype))
    rows = supports.rows(teacher)
    values, log_norm = pick_and_normalise(logits, rows.clamp(max=supports.num_classes - 1))
    inside = values.masked_fill(rows == supports.num_classes, -torch.inf).logsumexp(dim=2)
    share = shares_of_teachers(teacher, shares, inside.dtype)
    return _mean_over_teachers(inside - log_norm, teacher, share)


def factorised_kl(
    logits: Tensor,
    soft: SoftLabelBatch,
    supports: SupportTable,
    *,
    temperature: float = 1.0,
    tail: Tail = "uniform",
    shares: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return `support_log_mass` and `sparse_kl` over the support, from one pass over the logits.

    With the uniform tail nothing but sums over the support is needed: for u = tail mass / number
    of classes that are not stored,

        KL = sum_k t_k log t_k + tail log u + logsumexp(x / T)
             - sum_k (t_k - u) x_k / T - u sum_support(x) / T

    Args:
        logits: (B, C) student logits.
        soft: Soft labels decoded at `temperature`.
        supports: The teachers' supports.
        temperature: Of the divergence; the log mass is at temperature 1.
        tail: See `sparse_kl`.
        shares: (T, B) of each teacher in the averages, of sum 1 over the teachers of a row; None:
            all alike.

    Returns:
        (B,) log mass of the support, (B,) divergence; both averaged over the row's teachers.
    """
    if tail != "uniform" or supports.whole:
        return (
            support_log_mass(logits, soft.teacher, supports, shares=shares),
            sparse_kl(
                logits,
                soft,
                supports,
                temperature=temperature,
                tail=tail,
                over="support",
                shares=shares,
            ),
        )
    teacher = soft.teacher.clamp(min=0)
    chosen, total, tempered_norm, plain_norm, log_norm = support_statistics(
        logits,
        supports.columns[teacher],
        supports.inside[teacher],
        soft.ids.clamp(min=0),
        temperature,
    )
    targets = SparseTargets.from_labels(soft, supports, chosen.dtype)
    # Where there is no tail, what is stored is all there is, and it sums to 1 up to its code.
    agreed = ((targets.above_each * chosen).sum(dim=2) + targets.each * total) / temperature
    given = targets.probs.sum(dim=2) + targets.tail
    divergence = targets.negative_entropy + given * tempered_norm - agreed
    share = shares_of_teachers(soft.teacher, shares, chosen.dtype)
    return (
        _mean_over_teachers(plain_norm - log_norm, soft.teacher, share),
        _mean_over_teachers(divergence, soft.teacher, share),
    )


def sparse_bce(logits: Tensor, soft: SoftLabelBatch) -> Tensor:
    """Return the binary cross-entropy against sparse sigmoid labels, summed over all C classes.

    Equation L_s of Knowledge Concentration (arXiv 1711.07607): the target is the teacher's
    probability for stored classes and 0 for every other class, so that

        sum_j bce(z_j, x_j) = sum_j softplus(x_j) - sum_k z_k x_k

    needs the stored pairs only.

    Args:
        logits: (B, C).
        soft: Sigmoid labels: `log_probs` = log sigmoid(teacher logit).

    Returns:
        (B,); the target is the mean over the teachers of the row, and all zeros without one.
    """
    scores = logits.to(raised(logits.dtype))
    chosen = pick(scores, soft.ids.clamp(min=0))
    probs = torch.where(soft.ids >= 0, soft.log_probs, -torch.inf).exp().to(scores.dtype)
    share = shares_of_teachers(soft.teacher, None, scores.dtype)
    agreed = _mean_over_teachers((probs * chosen).sum(dim=2), soft.teacher, share)
    return functional.softplus(scores).sum(dim=1) - agreed
