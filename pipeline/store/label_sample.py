"""Figures that need decoded labels, from a sample of rows: entropy, tails, symbols, disagreement.

In: sums over some rows, and their merge. Left out: which rows are sampled (inspect.py).

Symbols are counted by column of `ids` and `gaps`. With many classes and ranks that table would be
large, so that only some columns of `ids` are counted then, at even distances.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.store.hard_labels import HardLabels
from pipeline.store.lazy import entropy
from storage_schemas.errors import CorruptLabelError
from storage_schemas.soft_labels import DecodedLabels, SoftLabelSchema, decode

ENTROPY_BINS = 640
TAIL_EDGES = np.linspace(-6.0, 0.0, 25)
# 32 MB: every column of K = 16 ranks of up to 262,000 classes.
SYMBOL_CELLS = 1 << 22
KEPT_DISAGREEMENTS = 64
# Rows decoded at once: few enough that they stay in the processor's cache.
BLOCK_ROWS = 8_192
SMALLEST_LOG = -60.0

Counts = npt.NDArray[np.int64]
DISAGREEMENT = np.dtype(
    [
        ("margin", np.float64),
        ("row", np.int64),
        ("view", np.int64),
        ("hard", np.int64),
        ("first", np.int64),
        ("first_log", np.float64),
        ("hard_log", np.float64),
    ]
)


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelSample:
    """Sums over decoded labels.

    Attributes:
        labels: How many.
        entropy_sum: In nats.
        tail_sum: Of the tail masses.
        entropy_counts: (ENTROPY_BINS,) from 0 to `largest_entropy`.
        tail_counts: (24,) of log10 tail mass, without labels that have no tail.
        ids_counts: (columns, C_t + 1) symbols of some columns of ids; the last is fill.
        gaps_counts: (G, fill + 1) symbols.
        disagreements: At most `KEPT_DISAGREEMENTS` of type `DISAGREEMENT`, hardest first, one a
            row.
    """

    labels: int
    entropy_sum: float
    tail_sum: float
    entropy_counts: Counts
    tail_counts: Counts
    ids_counts: Counts
    gaps_counts: Counts
    disagreements: npt.NDArray[np.void]


def largest_entropy(schema: SoftLabelSchema) -> float:
    """Return the entropy that no label exceeds, in nats."""
    sigmoid = schema.activation == "sigmoid"
    top = schema.k * math.log(2) if sigmoid else math.log(max(schema.num_classes, 2))
    # A little above the largest possible entropy, which float32 may round up.
    return top * (1 + 1e-5)


def counted_columns(schema: SoftLabelSchema) -> Counts:
    """Return which columns of `ids` are counted."""
    most = max(2, SYMBOL_CELLS // (schema.num_classes + 1))
    return np.unique(np.linspace(0, schema.k - 1, min(schema.k, most)).astype(np.int64))


def sample_labels(
    schema: SoftLabelSchema,
    *,
    view: int,
    rows: Counts,
    ids: npt.NDArray[np.integer],
    gaps: npt.NDArray[np.integer],
    hard: HardLabels | None,
) -> LabelSample | None:
    """Return the figures of some rows of a view; None when none of them is labelled.

    Args:
        schema: Of the store.
        view: Their view.
        rows: (B,) their numbers.
        ids: (B, K) as stored.
        gaps: (B, G) as stored.
        hard: Hard labels of the store's rows.

    Raises:
        CorruptLabelError: If an id is out of range.
    """
    labelled = ids[:, 0] != schema.ids_fill
    if not labelled.all():
        rows, ids, gaps = rows[labelled], ids[labelled], gaps[labelled]
    if not len(rows):
        return None
    if ((ids >= schema.num_classes) & (ids != schema.ids_fill)).any():
        raise CorruptLabelError(
            f"view {view}, rows {rows[0]} to {rows[-1]}: an id is not below {schema.num_classes}"
        )
    total: LabelSample | None = None
    for at in range(0, len(rows), BLOCK_ROWS):
        block = slice(at, at + BLOCK_ROWS)
        part = _block(schema, view, rows[block], ids[block], gaps[block], hard)
        total = merge_samples([total, part])
    return total


def _block(
    schema: SoftLabelSchema,
    view: int,
    rows: Counts,
    ids: npt.NDArray[np.integer],
    gaps: npt.NDArray[np.integer],
    hard: HardLabels | None,
) -> LabelSample:
    found = decode(schema, ids, gaps, schema.temperatures[0])
    values = entropy(schema, found)
    scaled = values * (ENTROPY_BINS / largest_entropy(schema))
    places = np.clip(scaled, 0, ENTROPY_BINS - 1).astype(np.int64)
    tails = found.log_tail[found.log_tail > -np.inf].astype(np.float64)
    logs = np.clip(tails / np.log(10), TAIL_EDGES[0], TAIL_EDGES[-1])
    columns = counted_columns(schema)
    symbols = np.where(found.ids < 0, schema.num_classes, found.ids)[:, columns]
    return LabelSample(
        labels=len(rows),
        entropy_sum=float(values.sum(dtype=np.float64)),
        tail_sum=float(np.exp(tails).sum()),
        entropy_counts=np.bincount(places, minlength=ENTROPY_BINS),
        tail_counts=np.histogram(logs, bins=TAIL_EDGES)[0],
        ids_counts=_counts_by_column(symbols, schema.num_classes + 1),
        gaps_counts=_counts_by_column(gaps, schema.gaps_fill + 1),
        disagreements=_disagreements(schema, view, rows, found, hard),
    )


def _counts_by_column(values: npt.NDArray[np.integer], size: int) -> Counts:
    columns = values.shape[1]
    codes = values.astype(np.int64) + size * np.arange(columns)
    return np.bincount(codes.reshape(-1), minlength=columns * size).reshape(columns, size)


def _disagreements(
    schema: SoftLabelSchema,
    view: int,
    rows: Counts,
    found: DecodedLabels,
    hard: HardLabels | None,
) -> npt.NDArray[np.void]:
    if hard is None:
        return np.zeros(0, DISAGREEMENT)
    label = hard.local[rows].astype(np.int64)
    at = np.flatnonzero(hard.used[rows] & (label >= 0) & (label != found.ids[:, 0]))
    table = np.zeros(len(at), DISAGREEMENT)
    if not len(at):
        return table
    ids, log_probs, log_tail = found.ids[at], found.log_probs[at], found.log_tail[at]
    present = ids >= 0
    outside = np.maximum(schema.num_classes - present.sum(axis=1), 1)
    # A class that is not stored has its share of the tail. Where there is no tail (sigmoid), it has
    # at most what the last rank has.
    last = np.where(present, log_probs, np.inf).min(axis=1)
    absent = np.where(log_tail > -np.inf, log_tail - np.log(outside), last)
    is_label = ids == label[at, None]
    own = np.where(is_label, log_probs, -np.inf).max(axis=1)
    table["hard_log"] = np.maximum(np.where(is_label.any(axis=1), own, absent), SMALLEST_LOG)
    table["first_log"] = log_probs[:, 0]
    table["margin"] = table["first_log"] - table["hard_log"]
    table["row"], table["view"] = rows[at], view
    table["hard"], table["first"] = label[at], ids[:, 0]
    if len(table) > KEPT_DISAGREEMENTS:
        cut = np.partition(table["margin"], -KEPT_DISAGREEMENTS)[-KEPT_DISAGREEMENTS]
        table = table[table["margin"] >= cut]
    return hardest_rows(table)


def hardest_rows(table: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """Return the entries of largest margin, one a row, at most `KEPT_DISAGREEMENTS`.

    Ties are told apart by row and view, so that the order of merging does not matter.
    """
    table = table[np.lexsort((table["view"], table["row"], -table["margin"]))]
    _, first = np.unique(table["row"], return_index=True)
    return table[np.sort(first)][:KEPT_DISAGREEMENTS]


def merge_samples(parts: Sequence[LabelSample | None]) -> LabelSample | None:
    """Return the sums of all parts together."""
    some = [part for part in parts if part is not None]
    if len(some) < 2:
        return some[0] if some else None
    return LabelSample(
        labels=sum(part.labels for part in some),
        entropy_sum=sum(part.entropy_sum for part in some),
        tail_sum=sum(part.tail_sum for part in some),
        entropy_counts=functools.reduce(np.add, [part.entropy_counts for part in some]),
        tail_counts=functools.reduce(np.add, [part.tail_counts for part in some]),
        ids_counts=functools.reduce(np.add, [part.ids_counts for part in some]),
        gaps_counts=functools.reduce(np.add, [part.gaps_counts for part in some]),
        disagreements=hardest_rows(np.concatenate([part.disagreements for part in some])),
    )
