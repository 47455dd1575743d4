"""Principal components of a stream: the best linear autoencoder (Baldi & Hornik 1989).

In: the basis from the moments of all rows, and the codes in it. Left out: the moments (moments.py)
and where the rows come from.

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

from pipeline.numerics.moments import StreamingMoments


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


def principal_components(moments: StreamingMoments, count: int) -> PrincipalComponents:
    """Return the `count` directions of largest variance.

    Raises:
        ValueError: If there are fewer dimensions than that, or no rows.
    """
    mean = moments.mean
    dimensions = len(mean)
    if not 1 <= count <= dimensions:
        raise ValueError(f"count must be in 1..{dimensions}, got {count}")
    if moments.count == 0:
        raise ValueError("principal components need at least one row, got none")
    variances, vectors = torch.linalg.eigh(moments.covariance)
    basis = vectors.flip(1).T[:count]
    largest = basis.gather(1, basis.abs().argmax(dim=1, keepdim=True))
    return PrincipalComponents(
        mean=mean,
        basis=basis * torch.where(largest < 0, -1.0, 1.0),
        variances=variances.flip(0)[:count].clamp(min=0),
        total_variance=float(moments.covariance.trace()),
    )
