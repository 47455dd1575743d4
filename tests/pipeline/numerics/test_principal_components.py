"""Principal components of a stream, against numpy, and what two levels of them lose."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.numerics.moments import StreamingMoments
from pipeline.numerics.principal_components import PrincipalComponents, principal_components


def rows(seed: int, count: int = 400, dimensions: int = 6) -> Tensor:
    """Correlated float64 rows with a mean that is far from 0."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dimensions, dimensions, generator=generator, dtype=torch.float64)
    values = torch.randn(count, dimensions, generator=generator, dtype=torch.float64)
    return values @ mixing + 100


def fitted(values: Tensor, count: int, block: int = 37) -> PrincipalComponents:
    """The components of rows that come in blocks."""
    moments = StreamingMoments(values.shape[1], covariance=True)
    for part in values.split(block):
        moments.update(part)
    return principal_components(moments, count)


def error(found: PrincipalComponents, values: Tensor) -> float:
    """Mean squared norm of what the codes lose."""
    lost = values - found.decode(found.encode(values))
    return float(lost.square().sum(dim=1).mean())


def test_a_stream_gives_what_numpy_gives() -> None:
    """Variances, basis, codes and the optimal error are those of numpy on all rows at once."""
    values = rows(0)
    found = fitted(values, 3)
    centred = values.numpy() - values.numpy().mean(0)
    _, singular, directions = np.linalg.svd(centred, full_matrices=False)
    variances = singular**2 / len(values)
    np.testing.assert_allclose(found.variances, variances[:3], rtol=1e-10)
    np.testing.assert_allclose(np.abs(found.basis.numpy() @ directions[:3].T), np.eye(3), atol=1e-9)
    np.testing.assert_allclose(error(found, values), variances[3:].sum(), rtol=1e-9)
    np.testing.assert_allclose(found.total_variance, variances.sum(), rtol=1e-10)
    assert (found.basis.gather(1, found.basis.abs().argmax(1, keepdim=True)) > 0).all()


def test_two_levels_are_one_where_the_first_only_rotates() -> None:
    """With all components kept of each source, codes of codes are the codes of everything."""
    both = torch.cat([rows(1), rows(2) @ rows(3, 6)], dim=1)
    sources = both.split(6, dim=1)
    first = [fitted(source, 6) for source in sources]
    codes = torch.cat(
        [found.encode(source) for found, source in zip(first, sources, strict=True)], dim=1
    )
    one, two = fitted(both, 4), fitted(codes, 4)
    torch.testing.assert_close(two.variances, one.variances)
    torch.testing.assert_close(
        two.encode(codes).abs(), one.encode(both).abs(), rtol=1e-6, atol=1e-6
    )


def test_two_levels_lose_what_each_of_them_drops() -> None:
    """The error is the sum of what both levels drop, and at least that of one level."""
    both = torch.cat([rows(1), rows(2)], dim=1)
    sources = both.split(6, dim=1)
    first = [fitted(source, 4) for source in sources]
    codes = torch.cat(
        [found.encode(source) for found, source in zip(first, sources, strict=True)], dim=1
    )
    second = fitted(codes, 5)
    kept = second.decode(second.encode(codes)).split(4, dim=1)
    decoded = [found.decode(code) for found, code in zip(first, kept, strict=True)]
    total = float((both - torch.cat(decoded, dim=1)).square().sum(dim=1).mean())
    dropped = sum(error(found, source) for found, source in zip(first, sources, strict=True))
    assert total == pytest.approx(dropped + error(second, codes), rel=1e-9)
    assert total > error(fitted(both, 5), both)


def test_more_components_than_dimensions_are_refused() -> None:
    """The message says how many there can be."""
    with pytest.raises(ValueError, match=r"1\.\.6, got 7"):
        fitted(rows(0), 7)
    with pytest.raises(ValueError, match="at least one row"):
        principal_components(StreamingMoments(6, covariance=True), 2)
