"""Mean and covariance of a stream, in float64.

In: `StreamingMoments`, which merges batches. Left out: what is done with them
(pipeline.teachers.reductions).

Source: Chan, Golub, LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample
Variances", 1979. Each batch is centred on its own mean before it is squared, so a mean that is
large beside the spread costs no digits, as it does in sums of squares.
"""

from __future__ import annotations

import torch
from torch import Tensor


class StreamingMoments:
    """Mean and covariance of all vectors seen so far.

    Args:
        channels: C, the length of a vector.
        covariance: Keep (C, C); else the variances alone, (C,).
    """

    def __init__(self, channels: int, *, covariance: bool) -> None:
        self.count = 0
        self._full = covariance
        self._mean = torch.zeros(channels, dtype=torch.float64)
        shape = (channels, channels) if covariance else (channels,)
        self._scatter = torch.zeros(shape, dtype=torch.float64)

    def update(self, vectors: Tensor) -> None:
        """Take in (n, C) vectors of any float type."""
        n = len(vectors)
        if n == 0:
            return
        values = vectors.to(self._mean.device, torch.float64)
        mean = values.mean(dim=0)
        centred = values - mean
        delta = mean - self._mean
        total = self.count + n
        weight = self.count * n / total
        if self._full:
            self._scatter += centred.T @ centred + weight * torch.outer(delta, delta)
        else:
            self._scatter += centred.square().sum(dim=0) + weight * delta.square()
        self._mean += delta * (n / total)
        self.count = total

    @property
    def mean(self) -> Tensor:
        """(C,) float64."""
        return self._mean.clone()

    @property
    def covariance(self) -> Tensor:
        """(C, C) float64, or (C,) variances, divided by the count (not by one less)."""
        return self._scatter / max(self.count, 1)
