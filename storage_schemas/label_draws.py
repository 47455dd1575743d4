"""The random bits with which a label's classes are drawn, under selection `sampled`.

In: uniforms as a pure function of (seed, row, view, draw). Left out: the draw itself
(pipeline.numerics.sampling).

They come from the generator of the views with the same key, the recipe's seed, and counters
(row, view, block) as well. Blocks of views are counted from 0, blocks of draws from 2^31, so no
bits are used twice. One block gives two draws of 52 bits: with 32 bits a class of probability
1e-10 would be drawn twice as often as it should be, or never.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from storage_schemas.philox import philox4x32, split_words

FIRST_BLOCK: Final = 2**31
_DROPPED: Final = np.uint64(12)  # of 64 bits
_STEP: Final = 2.0**-52


def draw_uniforms(
    seed: int, rows: npt.NDArray[np.int64], view: int | npt.NDArray[np.int64], draws: int
) -> npt.NDArray[np.float64]:
    """Return (B, draws) uniforms in the open interval (0, 1) for the labels of B rows in a view.

    They are the midpoints of 2^52 equal cells, exact in float64. Draw d of a label does not
    depend on how many draws are asked for.

    Args:
        seed: Of the view recipe, below 2^64.
        rows: (B,) manifest rows, >= 0.
        view: View number, in [0, 2^32), or (B,) of them.
        draws: At least 1, below 2^32.
    """
    low, high = split_words(rows)
    blocks = FIRST_BLOCK + np.arange(-(-draws // 2))[:, None]
    words = philox4x32((low, high, view, blocks), split_words(seed)).astype(np.uint64)
    # (2 draws, blocks, B): words 0 and 1 make the first draw of a block, 2 and 3 the second.
    whole = ((words[1::2] << np.uint64(32)) | words[0::2]) >> _DROPPED
    u = (whole.astype(np.float64) + 0.5) * _STEP
    return u.transpose(2, 1, 0).reshape(len(rows), 2 * len(blocks))[:, :draws]
