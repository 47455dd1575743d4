"""Counts of pairs in bounded memory.

In: exact counts while there are few different pairs, and beyond that lower bounds with a known
error: the mergeable summary of Misra and Gries (Agarwal et al. 2012, "Mergeable summaries").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

LARGEST_PAIRS = 1 << 16
# Up to so many possible pairs for each one that occurs, a table is quicker than sorting.
DENSE_PAIRS = 8

Codes = npt.NDArray[np.int64]
Ids = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, kw_only=True, eq=False)
class PairCounts:
    """How often pairs of classes occur.

    Attributes:
        codes: (n,) first * num_classes + second, ascending.
        counts: (n,) int64, at most `missing` too small.
        missing: How many each count, and each pair that is not here, may lack; 0 is exact.
    """

    codes: Codes
    counts: Codes
    missing: int = 0


def count_pairs(first: Ids, second: Ids, num_classes: int) -> PairCounts:
    """Count pairs of class ids, both (n,) and below `num_classes`."""
    codes = first.astype(np.int64) * num_classes + second
    if num_classes * num_classes <= DENSE_PAIRS * len(codes):
        table = np.bincount(codes)
        found = np.flatnonzero(table)
        return _bounded(found, table[found], 0)
    found, counts = np.unique(codes, return_counts=True)
    return _bounded(found, counts, 0)


def merge_pairs(parts: Sequence[PairCounts]) -> PairCounts:
    """Return the counts of all parts together."""
    codes, places = np.unique(np.concatenate([part.codes for part in parts]), return_inverse=True)
    counts = np.zeros(len(codes), np.int64)
    np.add.at(counts, places, np.concatenate([part.counts for part in parts]))
    return _bounded(codes, counts, sum(part.missing for part in parts))


def _bounded(codes: Codes, counts: Codes, missing: int) -> PairCounts:
    if len(codes) > LARGEST_PAIRS:
        cut = int(np.partition(counts, -LARGEST_PAIRS - 1)[-LARGEST_PAIRS - 1])
        codes, counts = codes[counts > cut], counts[counts > cut] - cut
        missing += cut
    return PairCounts(codes=codes, counts=counts, missing=missing)
