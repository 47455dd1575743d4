"""The soft-label code: teacher outputs to small integers and back, in numpy.

In: `encode` and `decode` of version 1. Left out: the schema itself (soft_label_schema.py), files,
checksums and torch. README.md beside this
file specifies the code.

Distances from the first rank are rounded, and differences of the rounded distances are stored, so
the error of every rank stays within half a step instead of growing as a random walk. A gap above
the largest valid code is caught up by the gaps after it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from storage_schemas.soft_label_schema import SoftLabelSchema

__all__ = ["DecodedLabels", "SoftLabelSchema", "decode", "encode"]


class DecodedLabels(NamedTuple):
    """Sparse distributions of B labels.

    Attributes:
        ids: (B, K) int64 class ids, most probable first; -1 where not labelled.
        log_probs: (B, K) float32; -inf where not labelled. Under sigmoid, log sigmoid(logit / T).
        log_tail: (B,) float32 log of the mass of all other classes of the teacher.
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
    """Quantise the top K of B teacher outputs.

    Args:
        schema: Of the store they go to.
        ids: (B, K) teacher-local class ids, most probable first.
        logits: (B, K) their logits, not increasing along the ranks.
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
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < schema.num_classes:
        raise ValueError(f"ids must be in 0..{schema.num_classes - 1}")
    exact = logits.astype(np.float64)
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
        gaps[:, schema.k - 1 :] = _tail_codes(schema, log_tail_ratio, len(ids))
    # rank[j] = min(distance[j], rank[j - 1] + largest), without a loop over the ranks.
    reach = largest * np.arange(schema.k, dtype=np.float64)
    ranks = np.minimum.accumulate(distances - reach, axis=1) + reach
    gaps[:, : schema.k - 1] = np.diff(ranks, axis=1)
    return ids.astype(schema.ids_dtype), gaps


def _tail_codes(
    schema: SoftLabelSchema, log_tail_ratio: npt.NDArray[np.floating[Any]], rows: int
) -> npt.NDArray[np.float64]:
    shape = (rows, len(schema.temperatures))
    if log_tail_ratio.shape != shape:
        raise ValueError(f"log_tail_ratio must be {shape}, got {log_tail_ratio.shape}")
    if np.isnan(log_tail_ratio).any():
        raise ValueError("log_tail_ratio must not be NaN")
    if schema.k == schema.num_classes:
        return np.zeros(shape)
    code = schema.encoding
    levels = np.rint((log_tail_ratio.astype(np.float64) + code["tail_offset"]) / code["tail_step"])
    return np.clip(levels, 0, schema.gaps_fill - 1)


def decode(
    schema: SoftLabelSchema,
    ids: npt.NDArray[Any],
    gaps: npt.NDArray[Any],
    temperature: float = 1.0,
) -> DecodedLabels:
    """Return the distributions that B stored rows stand for.

    Under softmax the K probabilities and the tail sum to one. Every row is decoded on its own:
    the result does not depend on the rest of the batch.

    Args:
        schema: Of the store they come from.
        ids: (B, K) as stored.
        gaps: (B, columns) as stored.
        temperature: One of the declared temperatures.

    Raises:
        SchemaMismatchError: If the temperature was not declared; lists the declared ones.
    """
    position = schema.temperature_index(temperature)
    code, k = schema.encoding, schema.k
    scaled = np.zeros((len(ids), k), np.float32)
    ranks = np.cumsum(gaps[:, : k - 1], axis=1, dtype=np.int32)
    np.multiply(ranks, np.float32(-code["gap_step"] / temperature), out=scaled[:, 1:])
    log_tail = np.full(len(ids), -np.inf, np.float32)
    if schema.activation == "sigmoid":
        top = gaps[:, -1] * code["gap_step"] - code["top_offset"]
        scaled += (top / temperature).astype(np.float32)[:, None]
        log_probs = -np.logaddexp(np.float32(0), -scaled)
    else:
        total = np.exp(scaled).sum(axis=1)
        if k < schema.num_classes:
            tails = gaps[:, k - 1 + position].astype(np.float32)
            log_tail = np.float32(code["tail_offset"]) - tails * np.float32(code["tail_step"])
            total += np.exp(log_tail)
        norm = np.log(total)
        log_probs = scaled - norm[:, None]
        log_tail = log_tail - norm
    local = ids.astype(np.int64)
    absent = ids == schema.ids_fill
    if absent.any():
        local[absent] = -1
        log_probs[absent] = -np.inf
        log_tail[absent[:, 0]] = -np.inf
    return DecodedLabels(local, log_probs, log_tail)
