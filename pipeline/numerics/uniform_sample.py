"""A uniform sample of a stream, of bounded size.

In: `UniformSample`, which gives every vector of a stream the same chance, whatever its length and
however it is cut into batches. Left out: what is done with the sample (pipeline.teachers).

Each vector gets a random key, and those of the smallest keys stay.
"""

from __future__ import annotations

import torch
from torch import Tensor


class UniformSample:
    """Keeps some vectors of all that were seen.

    Args:
        size: How many at most.
        channels: C, the length of a vector.
        seed: Of the keys.
    """

    def __init__(self, size: int, channels: int, seed: int) -> None:
        self._size = size
        self._generator = torch.Generator().manual_seed(seed)
        self._keys = torch.zeros(0, dtype=torch.float64)
        self._vectors = torch.zeros(0, channels)

    def update(self, vectors: Tensor) -> None:
        """Take in (n, C) vectors of any float type."""
        keys = torch.rand(len(vectors), generator=self._generator, dtype=torch.float64)
        if len(self._keys) == self._size:
            chosen = keys < self._keys[-1]
            keys, vectors = keys[chosen], vectors[chosen]
        if len(keys) == 0:
            return
        every = torch.cat([self._keys, keys])
        order = every.argsort()[: self._size]
        self._keys = every[order]
        self._vectors = torch.cat([self._vectors, vectors.float()])[order]

    @property
    def vectors(self) -> Tensor:
        """(n, C) float32 in random order; a copy."""
        return self._vectors.clone()
