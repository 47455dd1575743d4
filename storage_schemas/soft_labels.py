"""The soft-label code: teacher outputs to small integers and back, in numpy.

In: `encode`, `encode_counts` and `decode` of version 1. Left out: the schema itself
(soft_label_schema.py), files, checksums and torch. README.md beside this file specifies the code.

Distances from the first rank are rounded, and differences of the rounded distances are stored, so
the error of every rank stays within half a step instead of growing as a random walk. A gap above
the largest valid code is caught up by the gaps after it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from storage_schemas.soft_label_schema import SoftLabelSchema

_BLOCK_ROWS = 4_096  # whose numbers stay in the processor's cache

__all__ = ["DecodedLabels", "SoftLabelSchema", "decode", "encode", "encode_counts"]


class DecodedLabels(NamedTuple):
    """Sparse distributions of B labels.

    Attributes:
        ids: (B, K) int64 class ids, most probable first; -1 where nothing is stored.
        log_probs: (B, K) float32; -inf where nothing is stored. Under sigmoid, log sigmoid(logit /
            T). Under sampled, log of the share of the draws.
        log_tail: (B,) float32 log of the mass of all other classes of the teacher; -inf under
            sampled.
    """

    ids: npt.NDArray[np.int64]
    log_probs: npt.NDArray[np.float32]
    log_tail: npt.NDArray[np.float32]


def encode(
    schema: SoftLabelSchema,
    ids: npt.NDArray[np.integer[Any]],
    logits: npt.NDArray[np.floating[Any]],
    log_tail_ratio: npt.NDArray[np.floating[Any]],
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Quantise the kept ranks of B teacher outputs, under top_k and top_p.

    Args:
        schema: Of the store they go to.
        ids: (B, K) teacher-local class ids, most probable first. Under top_p a row may end early:
            -1 from its first absent rank on.
        logits: (B, K) their logits, not increasing along the ranks. Not read where the id is -1.
        log_tail_ratio: (B, number of temperatures) log p1 - log tail mass at each temperature,
            +inf where there is no tail. Not read under sigmoid.

    Returns:
        ids (B, K) and gaps (B, columns) in the store's types.

    Raises:
        ValueError: On a wrong shape, an id out of range, a value that is not finite, or logits
            that increase along the ranks.
    """
    shape = (len(ids), schema.k)
    if ids.shape != shape or logits.shape != shape:
        raise ValueError(f"ids and logits must be {shape}, got {ids.shape} and {logits.shape}")
    if schema.selection == "sampled":
        raise ValueError("draws have counts and no logits: use encode_counts")
    absent = _absent(schema, ids)
    exact = logits.astype(np.float64)
    if absent.any():
        # An absent rank repeats the last one: a gap of 0, replaced by fill below.
        last = np.take_along_axis(exact, (~absent).sum(axis=1, keepdims=True) - 1, axis=1)
        exact = np.where(absent, last, exact)
    if not np.isfinite(exact).all():
        raise ValueError("logits must be finite")
    if (np.diff(exact, axis=1) > 0).any():
        raise ValueError("logits must not increase along the ranks")
    gaps = np.empty((len(ids), schema.columns), schema.gaps_dtype)
    largest = schema.gaps_fill - 1
    step = schema.encoding["gap_step"]
    if schema.activation == "sigmoid":
        # Each logit is rounded by itself, so that the error of the top does not add to the rest.
        levels = np.rint((exact + schema.encoding["top_offset"]) / step)
        top = np.clip(levels[:, :1], 0, largest)
        distances = np.maximum(top - levels, 0)
        distances[:, 0] = 0
        gaps[:, -1] = top[:, 0]
    else:
        distances = np.rint((exact[:, :1] - exact) / step)
        gaps[:, schema.k - 1 :] = _tail_codes(schema, log_tail_ratio, (~absent).sum(axis=1))
    # rank[j] = min(distance[j], rank[j - 1] + largest), without a loop over the ranks.
    reach = largest * np.arange(schema.k, dtype=np.float64)
    ranks = np.minimum.accumulate(distances - reach, axis=1) + reach
    gaps[:, : schema.k - 1] = np.diff(ranks, axis=1)
    gaps[:, : schema.k - 1][absent[:, 1:]] = schema.gaps_fill
    return np.where(absent, schema.ids_fill, ids).astype(schema.ids_dtype), gaps


def encode_counts(
    schema: SoftLabelSchema,
    ids: npt.NDArray[np.integer[Any]],
    counts: npt.NDArray[np.integer[Any]],
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Store what K draws from each of B teacher outputs gave, under sampled.

    Args:
        schema: Of the store they go to.
        ids: (B, K) different teacher-local class ids, most frequent first, equal counts by rising
            id; -1 from the first absent rank on.
        counts: (B, K) how often each was drawn, K in all; 0 where the id is -1.

    Returns:
        ids (B, K) and gaps (B, K) in the store's types.

    Raises:
        ValueError: On a wrong shape, an id out of range, or counts that are not of K draws.
    """
    shape = (len(ids), schema.k)
    if ids.shape != shape or counts.shape != shape:
        raise ValueError(f"ids and counts must be {shape}, got {ids.shape} and {counts.shape}")
    absent = _absent(schema, ids)
    if (counts.sum(axis=1) != schema.k).any() or ((counts < 1) != absent).any():
        raise ValueError(f"counts must be at least 1, 0 where the id is -1, and sum to {schema.k}")
    if (np.diff(counts, axis=1) > 0).any():
        raise ValueError("counts must not increase along the ranks")
    return (
        np.where(absent, schema.ids_fill, ids).astype(schema.ids_dtype),
        np.where(absent, schema.gaps_fill, counts).astype(schema.gaps_dtype),
    )


def _absent(schema: SoftLabelSchema, ids: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.bool_]:
    """Return (B, K) which ranks are not there, once the ids are known to be in order."""
    absent = np.asarray(ids == -1)
    if schema.selection == "top_k":
        absent[:] = False
    present = ids[~absent]
    if present.size and not 0 <= int(present.min()) <= int(present.max()) < schema.num_classes:
        raise ValueError(f"ids must be in 0..{schema.num_classes - 1}")
    if absent[:, 0].any() or (absent[:, :-1] & ~absent[:, 1:]).any():
        raise ValueError("rank 0 must be there, and ids must be -1 from the first absent rank on")
    return absent


def _tail_codes(
    schema: SoftLabelSchema,
    log_tail_ratio: npt.NDArray[np.floating[Any]],
    kept: npt.NDArray[np.integer[Any]],
) -> npt.NDArray[np.float64]:
    shape = (len(kept), len(schema.temperatures))
    if log_tail_ratio.shape != shape:
        raise ValueError(f"log_tail_ratio must be {shape}, got {log_tail_ratio.shape}")
    if np.isnan(log_tail_ratio).any():
        raise ValueError("log_tail_ratio must not be NaN")
    code = schema.encoding
    levels = np.rint((log_tail_ratio.astype(np.float64) + code["tail_offset"]) / code["tail_step"])
    has_tail = kept[:, None] < schema.num_classes
    return np.where(has_tail, np.clip(levels, 0, schema.gaps_fill - 1), 0)


def decode(
    schema: SoftLabelSchema,
    ids: npt.NDArray[Any],
    gaps: npt.NDArray[Any],
    temperature: float = 1.0,
) -> DecodedLabels:
    """Return the distributions that B stored rows stand for.

    Under softmax the stored probabilities and the tail sum to one. Every row is decoded on its
    own: the result does not depend on the rest of the batch.

    Args:
        schema: Of the store they come from.
        ids: (B, K) as stored.
        gaps: (B, columns) as stored.
        temperature: One of the declared temperatures.

    Raises:
        SchemaMismatchError: If the temperature was not declared; lists the declared ones.
    """
    position = schema.temperature_index(temperature)
    absent = ids == schema.ids_fill
    if schema.selection == "sampled":
        log_probs, log_tail = _shares(schema, gaps)
    else:
        log_probs = np.empty((len(gaps), schema.k), np.float32)
        log_tail = np.empty(len(gaps), np.float32)
        code = schema.encoding
        for start in range(0, len(gaps), _BLOCK_ROWS):
            block = slice(start, start + _BLOCK_ROWS)
            out = log_probs[block], log_tail[block]
            _distributions(schema, code, absent[block], gaps[block], temperature, position, out)
    local = ids.astype(np.int64)
    if absent.any():
        local[absent] = -1
        log_probs[absent] = -np.inf
        log_tail[absent[:, 0]] = -np.inf
    return DecodedLabels(local, log_probs, log_tail)


def _distributions(
    schema: SoftLabelSchema,
    code: dict[str, float],
    absent: npt.NDArray[np.bool_],
    gaps: npt.NDArray[Any],
    temperature: float,
    position: int,
    out: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]],
) -> None:
    """Write log probabilities (B, K) and log tails (B,) to `out`.

    Ranks lie along the first axis here: every step is then over B neighbouring numbers, not K.
    """
    k = schema.k
    log_probs, log_tail = out
    # Sums of codes are whole numbers, exact in float32 below 2**24.
    exact = np.float32 if k * schema.gaps_fill < 2**24 else np.float64
    scaled = np.zeros((k, len(gaps)), exact)
    scaled[1:] = gaps.T[: k - 1]
    for rank in range(2, k):
        scaled[rank] += scaled[rank - 1]
    scaled[1:] *= np.float32(-code["gap_step"] / temperature)
    scaled = scaled.astype(np.float32, copy=False)
    log_tail[:] = -np.inf
    if schema.activation == "sigmoid":
        top = gaps[:, -1] * code["gap_step"] - code["top_offset"]
        scaled += (top / temperature).astype(np.float32)
        log_probs.T[:] = -np.logaddexp(np.float32(0), -scaled)
        return
    all_kept: npt.NDArray[np.bool_] | None = None  # top_k: of all rows or of none
    if schema.selection == "top_p":
        scaled[1:][absent.T[1:]] = -np.inf
        all_kept = (~absent).sum(axis=1) == schema.num_classes
    total = _pairwise_sum(np.exp(scaled))
    if k < schema.num_classes or all_kept is not None:
        tails = gaps[:, k - 1 + position].astype(np.float32)
        log_tail[:] = np.float32(code["tail_offset"]) - tails * np.float32(code["tail_step"])
        if all_kept is not None:
            log_tail[all_kept] = -np.inf
        total += np.exp(log_tail)
    norm = np.log(total)
    log_tail -= norm
    np.subtract(scaled, norm, out=log_probs.T)


def _pairwise_sum(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the sum of (n, B) over n, with the roundings of numpy's sum over a last axis of n.

    So a label decodes to the same bits whichever way the ranks lie in memory.
    """
    total: npt.NDArray[np.float32]
    n = len(values)
    if n > 128:
        half = n // 2 - n // 2 % 8
        return _pairwise_sum(values[:half]) + _pairwise_sum(values[half:])
    whole = n - n % 8
    if whole:
        lanes = values[:8].copy()
        for start in range(8, whole, 8):
            lanes += values[start : start + 8]
        pairs = lanes[0::2] + lanes[1::2]
        pairs = pairs[0::2] + pairs[1::2]
        total = pairs[0] + pairs[1]
    else:
        whole, total = 1, values[0].copy()
    for rest in values[whole:]:
        total += rest
    return total


def _shares(
    schema: SoftLabelSchema, counts: npt.NDArray[Any]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    with np.errstate(divide="ignore"):
        logs = np.log(np.arange(schema.k + 1) / schema.k).astype(np.float32)
    return logs[np.minimum(counts, schema.k)], np.full(len(counts), -np.inf, np.float32)
