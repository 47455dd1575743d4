"""Losses of dense student logits against sparse soft labels.

In: Kullback-Leibler divergence with three treatments of the tail, binary cross-entropy, and the
mass that the student gives to a teacher's support. Left out: the factor T^2 of Hinton et al. 2015
(arXiv 1503.02531, section 2) and means over the batch, which belong to the objectives.

Nothing of the size of the logits is built for the targets. Beside the gradient of the logits, the
largest tensors are, where a tail or a support is involved, the (T, B, S) logits of the supports,
S = classes of the largest teacher. Half-precision logits are raised to
float32 first.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.numerics.lookup import pick, pick_and_normalise, support_statistics
from pipeline.numerics.soft_label_batch import SoftLabelBatch
from pipeline.numerics.supports import SupportTable

Tail = Literal["uniform", "bucket", "drop"]
Over = Literal["all", "support"]


def _scores(logits: Tensor, temperature: float = 1.0) -> Tensor:
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    return logits if temperature == 1.0 else logits / temperature


def _mean_over_teachers(values: Tensor, teacher: Tensor, shares: Tensor | None = None) -> Tensor:
    """Average (T, B) values over the teachers of each row; 0 where there is none.

    With (T, B) shares, which sum to 1 over the teachers of a row, the average is by them.
    """
    present = teacher >= 0
    if shares is not None:
        return (torch.where(present, values, 0.0) * shares.to(values.dtype)).sum(dim=0)
    if len(teacher) == 1:
        return torch.where(present[0], values[0], 0.0)
    summed = torch.where(present, values, 0.0).sum(dim=0)
    return summed / present.sum(dim=0).clamp(min=1)


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
    scores = _scores(logits, temperature)
    stored = soft.ids >= 0
    unstored_classes = supports.sizes[soft.teacher.clamp(min=0)] - stored.sum(dim=2)
    has_tail = (soft.log_tail > -torch.inf) & (unstored_classes > 0)
    log_probs = torch.where(stored, soft.log_probs, 0.0).to(scores.dtype)
    log_tail = torch.where(has_tail, soft.log_tail, 0.0).to(scores.dtype)
    if tail == "drop":
        mass = log_probs.masked_fill(~stored, -torch.inf).logsumexp(dim=2, keepdim=True)
        log_probs = log_probs - torch.where(mass > -torch.inf, mass, 0.0)

    ids = soft.ids.clamp(min=0)
    rows = supports.rows(soft.teacher)
    if over == "support" or tail != "drop":
        ids = torch.cat([ids, rows.clamp(max=supports.num_classes - 1)], dim=2)
    if over == "all":
        picked, log_norm = pick_and_normalise(scores, ids)
    else:
        picked = pick(scores, ids)
    chosen, values = picked.tensor_split([soft.ids.shape[2]], dim=2)
    if over == "support":
        log_norm = values.masked_fill(rows == supports.num_classes, -torch.inf).logsumexp(dim=2)
    ratio = log_probs - (chosen - log_norm.unsqueeze(-1))
    divergence = torch.where(stored, log_probs.exp() * ratio, 0.0).sum(dim=2)
    if tail == "drop":
        return _mean_over_teachers(divergence, soft.teacher, shares)

    unstored = _unstored(rows, soft, supports.num_classes)
    count = unstored_classes.clamp(min=1)
    if tail == "uniform":
        mean = torch.where(unstored, values, 0.0).sum(dim=2) / count
        tail_ratio = (log_tail - count.to(log_tail.dtype).log()) - (mean - log_norm)
    else:
        rest = values.masked_fill(~unstored, -torch.inf).logsumexp(dim=2)
        tail_ratio = log_tail - (torch.where(has_tail, rest, 0.0) - log_norm)
    divergence = divergence + torch.where(has_tail, log_tail.exp() * tail_ratio, 0.0)
    return _mean_over_teachers(divergence, soft.teacher, shares)


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
    scores = _scores(logits)
    rows = supports.rows(teacher)
    values, log_norm = pick_and_normalise(scores, rows.clamp(max=supports.num_classes - 1))
    inside = values.masked_fill(rows == supports.num_classes, -torch.inf).logsumexp(dim=2)
    return _mean_over_teachers(inside - log_norm, teacher, shares)


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
    if tail != "uniform":
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
    scores = _scores(logits)
    teacher = soft.teacher.clamp(min=0)
    chosen, total, tempered_norm, plain_norm, log_norm = support_statistics(
        scores,
        supports.columns[teacher],
        supports.inside[teacher].to(scores.dtype),
        soft.ids.clamp(min=0),
        temperature,
    )
    stored = soft.ids >= 0
    unstored = supports.sizes[teacher] - stored.sum(dim=2)
    has_tail = (soft.log_tail > -torch.inf) & (unstored > 0)
    log_probs = torch.where(stored, soft.log_probs, 0.0).to(scores.dtype)
    probs = log_probs.exp().masked_fill(~stored, 0.0)
    log_tail = torch.where(has_tail, soft.log_tail, 0.0).to(scores.dtype)
    mass = log_tail.exp().masked_fill(~has_tail, 0.0)
    count = unstored.clamp(min=1).to(scores.dtype)
    each = mass / count
    negative_entropy = (probs * log_probs).sum(dim=2) + mass * (log_tail - count.log())
    # Where there is no tail, what is stored is all there is, and it sums to 1 up to its code.
    weights = (probs - each.unsqueeze(2)).masked_fill(~stored, 0.0)
    agreed = ((weights * chosen).sum(dim=2) + each * total) / temperature
    given = probs.sum(dim=2) + mass
    divergence = negative_entropy + given * tempered_norm - agreed
    return (
        _mean_over_teachers(plain_norm - log_norm, soft.teacher, shares),
        _mean_over_teachers(divergence, soft.teacher, shares),
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
    scores = _scores(logits)
    chosen = pick(scores, soft.ids.clamp(min=0))
    probs = torch.where(soft.ids >= 0, soft.log_probs, -torch.inf).exp().to(scores.dtype)
    agreed = _mean_over_teachers((probs * chosen).sum(dim=2), soft.teacher)
    return functional.softplus(scores).sum(dim=1) - agreed
