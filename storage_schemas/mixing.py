"""Which images are mixed: pools of possible partners, and the weight's distribution.

In: `MixPools` (row -> pool -> partner) and the quantile function of Beta(a, a). Left out: how
pixels are mixed (pipeline.data.views) and which rows form a pool (the pipeline decides).

A pool is the rows of one teacher in one manifest append. Then a partner is always a row that the
same teacher labels, and rows added later never change the partner of an old row.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

_TABLE_CELLS: Final = 8192


@dataclass(frozen=True, kw_only=True, eq=False)
class MixPools:
    """A partition of rows into pools; partners are drawn inside a pool.

    Attributes:
        pool_of: (N,) int64 pool number of each row; -1: the row is never mixed.
    """

    pool_of: npt.NDArray[np.int64]

    @functools.cached_property
    def _layout(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Rows ordered by (pool, row), and the position of each row in that order."""
        order = np.argsort(self.pool_of, kind="stable").astype(np.int64)
        position = np.empty_like(order)
        position[order] = np.arange(len(order))
        return order, position

    @functools.cached_property
    def _bounds(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """First position and length of the pool of each row."""
        _, inverse, counts = np.unique(self.pool_of, return_inverse=True, return_counts=True)
        starts = np.cumsum(counts) - counts
        return starts[inverse].astype(np.int64), counts[inverse].astype(np.int64)

    def partners(
        self, rows: npt.NDArray[np.int64], words: npt.NDArray[np.uint32]
    ) -> npt.NDArray[np.int64]:
        """Draw one other row of the same pool for each row.

        Args:
            rows: (B,) int64.
            words: (B,) uint32 random words; the draw is `floor(word * (n - 1) / 2^32)`.

        Returns:
            (B,) int64; the row itself where its pool holds nothing else.

        Raises:
            ValueError: If a row lies outside the pools.
        """
        if rows.size and not 0 <= int(rows.min()) <= int(rows.max()) < len(self.pool_of):
            raise ValueError(
                f"rows must be in [0, {len(self.pool_of)}), got {rows.min()}..{rows.max()}"
            )
        order, position = self._layout
        starts, lengths = self._bounds
        start, length = starts[rows], lengths[rows]
        others = np.maximum(length - 1, 0).astype(np.uint64)
        drawn = ((words.astype(np.uint64) * others) >> np.uint64(32)).astype(np.int64)
        drawn += drawn >= position[rows] - start
        alone = (length < 2) | (self.pool_of[rows] < 0)
        return np.where(alone, rows, order[np.where(alone, 0, start + drawn)])


@functools.lru_cache(maxsize=8)
def _half_table(alpha: float) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """CDF of Beta(alpha, alpha) on [0, 1/2] scaled to end at 1/2, on a grid.

    For alpha < 1 the density has a pole at 0. In s = x^alpha it has none, so the grid is in s.
    """
    if alpha < 1:
        grid = np.linspace(0.0, 0.5**alpha, 2 * _TABLE_CELLS + 1)
        density = (1 - grid ** (1 / alpha)) ** (alpha - 1)
    else:
        grid = np.linspace(0.0, 0.5, 2 * _TABLE_CELLS + 1)
        density = (grid * (1 - grid)) ** (alpha - 1)
    simpson = density[:-2:2] + 4 * density[1::2] + density[2::2]
    cumulative = np.concatenate([[0.0], np.cumsum(simpson)])
    return cumulative * (0.5 / cumulative[-1]), grid[::2]


def symmetric_beta_quantile(alpha: float, u: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return the quantile function of Beta(alpha, alpha) at u, by a table of 8,192 cells.

    One uniform gives one sample, which a rejection method does not promise; that keeps each
    draw in its own slot. alpha = 1 is the uniform itself.
    """
    u = np.asarray(u, np.float64)
    if alpha == 1:
        return u
    cumulative, grid = _half_table(alpha)
    lower = np.interp(np.minimum(u, 1 - u), cumulative, grid)
    if alpha < 1:
        lower = lower ** (1 / alpha)
    return np.asarray(np.where(u < 0.5, lower, 1 - lower), np.float64)
