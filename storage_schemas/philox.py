"""Philox4x32-10, the counter-based random number generator, vectorised in numpy.

In: raw 32-bit words as a pure function of (counter, key), and uniforms from them. Left out:
`numpy.random.Philox` (four 64-bit words, one stream per object: a generator per image would be
needed) and every distribution but the uniform.

Source: Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

_MULTIPLIERS: Final = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL: Final = (0x9E3779B9, 0xBB67AE85)
_ROUNDS: Final = 10
_LOW: Final = np.uint64(0xFFFFFFFF)
_HALF: Final = np.uint64(32)


def philox4x32(
    counter: tuple[npt.ArrayLike, npt.ArrayLike, npt.ArrayLike, npt.ArrayLike],
    key: tuple[npt.ArrayLike, npt.ArrayLike],
) -> npt.NDArray[np.uint32]:
    """Return four random words for each counter.

    Args:
        counter: Four arrays of integers in [0, 2^32) that broadcast together to a shape S.
        key: Two such arrays; they broadcast with the counter.

    Returns:
        (4, *S) uint32.
    """
    c0, c1, c2, c3 = (np.asarray(word, np.uint64) for word in counter)
    k0, k1 = (np.asarray(word, np.uint64) for word in key)
    for number in range(_ROUNDS):
        bump0, bump1 = (np.uint64(number * step & 0xFFFFFFFF) for step in _WEYL)
        product0 = c0 * _MULTIPLIERS[0]
        product1 = c2 * _MULTIPLIERS[1]
        c0 = (product1 >> _HALF) ^ c1 ^ ((k0 + bump0) & _LOW)
        c1 = product1 & _LOW
        c2 = (product0 >> _HALF) ^ c3 ^ ((k1 + bump1) & _LOW)
        c3 = product0 & _LOW
    return np.stack(np.broadcast_arrays(c0, c1, c2, c3)).astype(np.uint32)


def split_words(value: npt.ArrayLike) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """Split non-negative 64-bit integers into their low and high 32 bits."""
    whole = np.asarray(value, np.uint64)
    return whole & _LOW, whole >> _HALF


def uniforms(words: npt.NDArray[np.uint32]) -> npt.NDArray[np.float64]:
    """Return the midpoints of 2^32 equal cells of (0, 1): exact in float64, never 0 or 1."""
    return (words.astype(np.float64) + 0.5) * 2.0**-32
