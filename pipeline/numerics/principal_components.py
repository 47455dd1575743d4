"""Principal components from one streaming pass: exact mean and covariance, then a basis.

In: `Moments`, which take in rows block by block; `principal_components`, the best linear
autoencoder of the rows seen (Baldi & Hornik 1989). Left out: where the rows come from.

Two levels. Let each of several sources keep its own codes z_t = E_t (x_t - m_t), and let a second
basis be fitted to the concatenated codes. Where every E_t is square, the first level only rotates
each source, so the second level has the variances, the reconstruction error and, up to the sign
of each, the codes of one basis fitted to the concatenated x. Where E_t drops components, the error
of the two levels is the variance that the first level dropped plus that which the second drops of
what is left. It is at least that of one level, which could have kept a direction that is weak in
each source and strong in their sum.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Moments:
    """What a pass over rows of D values has found so far.

    Attributes:
        count: Rows.
        mean: (D,) float64.
        scatter: (D, D) float64 sum of the outer products of rows less their mean.
    """

    count: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def empty(cls, dimensions: int) -> Moments:
        """Return the moments of no rows."""
        return cls(
            count=0,
            mean=torch.zeros(dimensions, dtype=torch.float64),
            scatter=torch.zeros(dimensions, dimensions, dtype=torch.float64),
        )

    def updated(self, rows: Tensor) -> Moments:
        """Return the moments with (n, D) more rows (Chan, Golub & LeVeque 1983, eq. 1.5)."""
        if len(rows) == 0:
            return self
        rows = rows.double()
        mean = rows.mean(dim=0)
        centred = rows - mean
        count = self.count + len(rows)
        shift = mean - self.mean
        return Moments(
            count=count,
            mean=self.mean + shift * (len(rows) / count),
            scatter=self.scatter
            + centred.T @ centred
            + torch.outer(shift, shift) * (self.count * len(rows) / count),
        )

    @property
    def covariance(self) -> Tensor:
        """(D, D) float64 covariance of the rows, divided by their number."""
        return self.scatter / max(self.count, 1)


@dataclass(frozen=True, kw_only=True)
class PrincipalComponents:
    """An orthonormal basis of the directions of largest variance.

    Attributes:
        mean: (D,) float64.
        basis: (d, D) float64 orthonormal rows, the strongest first. The entry of largest
            magnitude of each is positive, so that equal moments give equal codes.
        variances: (d,) float64 of the codes.
        total_variance: Of the rows, over all D directions.
    """

    mean: Tensor
    basis: Tensor
    variances: Tensor
    total_variance: float

    def encode(self, rows: Tensor) -> Tensor:
        """Return the (n, d) codes of (n, D) rows, in their dtype."""
        return (rows - self.mean.to(rows)) @ self.basis.T.to(rows)

    def decode(self, codes: Tensor) -> Tensor:
        """Return the (n, D) rows that (n, d) codes stand for."""
        return codes @ self.basis.to(codes) + self.mean.to(codes)


def principal_components(moments: Moments, count: int) -> PrincipalComponents:
    """Return the `count` directions of largest variance.

    Raises:
        ValueError: If there are fewer dimensions than that, or no rows.
    """
    dimensions = len(moments.mean)
    if not 1 <= count <= dimensions:
        raise ValueError(f"count must be in 1..{dimensions}, got {count}")
    if moments.count == 0:
        raise ValueError("principal components need at least one row, got none")
    variances, vectors = torch.linalg.eigh(moments.covariance)
    basis = vectors.flip(1).T[:count]
    largest = basis.gather(1, basis.abs().argmax(dim=1, keepdim=True))
    return PrincipalComponents(
        mean=moments.mean,
        basis=basis * torch.where(largest < 0, -1.0, 1.0),
        variances=variances.flip(0)[:count].clamp(min=0),
        total_variance=float(moments.covariance.trace()),
    )
