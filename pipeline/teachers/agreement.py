"""Whether stored labels are what a teacher says now, and how far apart the two are.

In: the tolerance that follows from the code (storage_schemas/README.md, section 3) and from the
noise of floating point, for ranked and for drawn labels, and the KL between two labels. Left out:
running the teacher (audit.py). All in float64 numpy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from storage_schemas.soft_labels import SoftLabelSchema, decode

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]


def within_tolerance(
    schema: SoftLabelSchema, ids: Array, gaps: Array, logits: Floats, noise: float
) -> npt.NDArray[np.bool_]:
    """Tell which stored labels a teacher with these logits may have given, (B,) bool.

    If no logit of the labelling run is further than eps from the logit of now, then the logit of
    the stored id at rank j is within 2 eps of the j-th largest, and every rounded value lies
    between the roundings of its two ends. That, and no more, is asked.

    Args:
        schema: Of the store.
        ids: (B, K) stored; fill at a rank that holds no class.
        gaps: (B, columns) stored.
        logits: (B, C_t) of now.
        noise: eps, in shares of the row's largest logit or of 1.
    """
    eps = noise * np.maximum(np.abs(logits).max(axis=1, keepdims=True), 1)
    present = ids != schema.ids_fill
    local = np.where(present, ids, 0).astype(np.int64)
    fits = local < schema.num_classes
    local[~fits] = 0
    stored = np.take_along_axis(logits, local, axis=1)
    ranked = -np.sort(-logits, axis=1)[:, : schema.k]
    fits &= np.abs(stored - ranked) <= 2 * eps

    largest = schema.gaps_fill - 1
    code = schema.encoding
    step = code["gap_step"]
    steps = np.where(present[:, 1:], gaps[:, : schema.k - 1], 0).astype(np.int64)
    ranks = np.concatenate([np.zeros((len(ids), 1), np.int64), np.cumsum(steps, axis=1)], axis=1)
    if schema.activation == "sigmoid":
        top = gaps[:, -1:].astype(np.float64)
        low, high = (np.rint((stored + sign * eps + code["top_offset"]) / step) for sign in (-1, 1))
        fits[:, :1] &= (np.clip(low, 0, largest)[:, :1] <= top) & (
            top <= np.clip(high, 0, largest)[:, :1]
        )
        near, far = np.maximum(top - high, 0), np.maximum(top - low, 0)
    else:
        distance = stored[:, :1] - stored
        near, far = (np.maximum(np.rint((distance + sign * 2 * eps) / step), 0) for sign in (-1, 1))
    # A gap at the largest code may have been clipped: then the rank only lies no further out.
    fits[:, 1:] &= (ranks <= far)[:, 1:] & ((ranks >= near)[:, 1:] | (steps == largest))
    found: npt.NDArray[np.bool_] = (fits | ~present).all(axis=1) & present[:, 0]
    if schema.top_p is not None:
        found &= _size_fits(schema, present, ranked, logits, eps[:, 0])
    if schema.activation == "softmax":
        whole = present.sum(axis=1) == schema.num_classes
        found[~whole] &= _tails_fit(
            schema,
            gaps[~whole],
            logits[~whole],
            local[~whole],
            present[~whole],
            eps[~whole, 0],
        )
    return found


def _size_fits(
    schema: SoftLabelSchema,
    present: npt.NDArray[np.bool_],
    ranked: Floats,
    logits: Floats,
    eps: Floats,
) -> npt.NDArray[np.bool_]:
    """Tell which rows of a nucleus end where their mass reaches `top_p`."""
    assert schema.top_p is not None
    temperature = schema.temperatures[0]
    mass = np.cumsum(np.exp(log_softmax(logits, ranked, temperature)), axis=1)
    slack = _mass_noise(eps, temperature)
    last = present.sum(axis=1) - 1
    here = np.take_along_axis(mass, last[:, None], axis=1)[:, 0]
    before = np.take_along_axis(mass, np.maximum(last - 1, 0)[:, None], axis=1)[:, 0]
    reached = (here + slack >= schema.top_p) | (last == present.shape[1] - 1)
    found: npt.NDArray[np.bool_] = reached & ((before - slack < schema.top_p) | (last == 0))
    return found


def log_softmax(logits: Floats, values: Floats, temperature: float) -> Floats:
    """Return log softmax(logits / temperature) at (B, n) of the (B, C) logits."""
    peak = logits.max(axis=1, keepdims=True)
    total = np.exp((logits - peak) / temperature).sum(axis=1, keepdims=True)
    found: Floats = (values - peak) / temperature - np.log(total)
    return found


def _mass_noise(eps: Floats, temperature: float) -> Floats:
    """Return how far the mass of a set of classes moves when every logit moves by eps.

    The odds of the set change by at most exp(2 eps / T), so its mass m by m (1 - m) times that
    less 1.
    """
    return np.expm1(2 * eps / temperature) / 4 + 1e-12


def draws_within_tolerance(
    schema: SoftLabelSchema, ids: Array, gaps: Array, logits: Floats, uniforms: Floats, noise: float
) -> npt.NDArray[np.bool_]:
    """Tell which stored draws a teacher with these logits may have given, (B,) bool.

    A draw falls on a class that it would fall on if its uniform were moved by no more than the
    noise moves the cumulative distribution. No class may have been drawn more often than draws can
    fall on it, nor less often than draws must.

    Args:
        schema: Of the store, whose selection is `sampled`.
        ids: (B, K) stored.
        gaps: (B, K) stored counts.
        logits: (B, C_t) of now.
        uniforms: (B, K) the bits that the label was drawn with.
        noise: As in `within_tolerance`.
    """
    temperature = schema.temperatures[0]
    eps = noise * np.maximum(np.abs(logits).max(axis=1), 1)
    slack = _mass_noise(eps, temperature)
    cumulative = np.cumsum(np.exp(log_softmax(logits, logits, temperature)), axis=1)
    present = ids != schema.ids_fill
    found: npt.NDArray[np.bool_] = present[:, 0] & (
        np.where(present, gaps, 0).sum(axis=1, dtype=np.int64) == schema.k
    )
    last = schema.num_classes - 1
    for row in np.flatnonzero(found):
        stored = dict(zip(ids[row][present[row]].tolist(), gaps[row].tolist(), strict=False))
        low, high = (
            np.minimum(np.searchsorted(cumulative[row], uniforms[row] + move, "right"), last)
            for move in (-slack[row], slack[row])
        )
        certain = dict(zip(*np.unique(low[low == high], return_counts=True), strict=True))
        found[row] = all(
            ((low <= local) & (local <= high)).sum() >= count for local, count in stored.items()
        ) and all(stored.get(int(local), 0) >= count for local, count in certain.items())
    return found


def draw_divergence(
    schema: SoftLabelSchema, ids: Array, gaps: Array, logits: Floats
) -> npt.NDArray[np.float64]:
    """Return the KL in nats from B stored draws to the teacher's distribution of now.

    It is not 0 for a sound label: the noise of K draws is in it.
    """
    temperature = schema.temperatures[0]
    present = ids != schema.ids_fill
    local = np.where(present, ids, 0).astype(np.int64)
    share = np.where(present, gaps, 0) / schema.k
    logs = log_softmax(logits, np.take_along_axis(logits, local, axis=1), temperature)
    terms = share * (np.log(np.where(present, share, 1)) - logs)
    found: npt.NDArray[np.float64] = terms.sum(axis=1)
    return found


def _tails_fit(
    schema: SoftLabelSchema,
    gaps: Array,
    logits: Floats,
    local: npt.NDArray[np.int64],
    present: npt.NDArray[np.bool_],
    eps: Floats,
) -> npt.NDArray[np.bool_]:
    """Tell which rows' tails are the mass outside their ids, at every temperature."""
    outside = logits.copy()
    rows, ranks = np.nonzero(present)
    outside[rows, local[rows, ranks]] = -np.inf
    peak = outside.max(axis=1)
    first = np.take_along_axis(logits, local[:, :1], axis=1)[:, 0]
    largest, code = schema.gaps_fill - 1, schema.encoding
    found = np.ones(len(gaps), np.bool_)
    for column, temperature in enumerate(schema.temperatures, start=schema.k - 1):
        mass = np.exp((outside - peak[:, None]) / temperature).sum(axis=1)
        ratio = (first - peak) / temperature - np.log(mass)
        low, high = (
            np.clip(
                np.rint(
                    (ratio + sign * 2 * eps / temperature + code["tail_offset"]) / code["tail_step"]
                ),
                0,
                largest,
            )
            for sign in (-1, 1)
        )
        found &= (low <= gaps[:, column]) & (gaps[:, column] <= high)
    return found


def divergence(
    schema: SoftLabelSchema,
    stored: tuple[Array, Array],
    fresh: tuple[Array, Array],
    temperature: float,
) -> Floats:
    """Return the KL in nats from B stored labels to B labels of now, over all classes.

    A class outside a softmax label has its share of the tail. A class outside a sigmoid label
    counts as little as the least one inside.
    """
    first, second = (decode(schema, *codes, temperature) for codes in (stored, fresh))
    found = np.empty(len(first.ids))
    for row in range(len(first.ids)):
        # Only classes that one of the two names are set apart; the others are alike.
        union = np.union1d(first.ids[row], second.ids[row])
        union = union[union >= 0]
        logs = []
        rest = []
        for label in (first, second):
            kept = label.ids[row] >= 0
            others = schema.num_classes - int(kept.sum())
            if schema.activation == "sigmoid":
                outside = float(label.log_probs[row][kept].min())
            else:
                outside = float(label.log_tail[row]) - np.log(max(others, 1))
            values = np.full(len(union), outside)
            values[np.searchsorted(union, label.ids[row][kept])] = label.log_probs[row][kept]
            logs.append(values)
            rest.append(outside)
        found[row] = _kl(schema, logs[0], logs[1])
        remaining = schema.num_classes - len(union)
        if schema.activation == "softmax" and remaining:
            found[row] += remaining * np.exp(rest[0]) * (rest[0] - rest[1])
    return np.maximum(found, 0)


def _kl(schema: SoftLabelSchema, log_p: Floats, log_q: Floats) -> float:
    p = np.exp(log_p)
    total = float((p * (log_p - log_q)).sum())
    if schema.activation == "sigmoid":
        tiny = np.finfo(np.float32).tiny
        rest_p, rest_q = (np.log(np.maximum(-np.expm1(v), tiny)) for v in (log_p, log_q))
        total += float((np.exp(rest_p) * (rest_p - rest_q)).sum())
    return total
