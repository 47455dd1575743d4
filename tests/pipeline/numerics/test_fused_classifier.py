"""A classifier and its loss in blocks, against the layer and the loss one after the other."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from pipeline.numerics import SoftLabelBatch, SupportTable, factorised_kl, sparse_kl
from pipeline.numerics.fused_classifier import fused_linear_loss

B, C, D, K = 7, 19, 5, 3
TABLE = SupportTable.from_supports((torch.arange(8), torch.arange(8, C)), C)
WHOLE = SupportTable.from_supports((torch.arange(C), torch.arange(C)), C)
TEACHER = torch.tensor([[0, 1, -1, 0, 1, 1, 0]])


def soft_labels() -> SoftLabelBatch:
    """Labels of two teachers of half the classes each; one row has none, one has fewer."""
    generator = torch.Generator().manual_seed(0)
    places = torch.rand(1, B, 8, generator=generator).argsort(dim=2)[..., :K]
    ids = TABLE.ids[TEACHER.clamp(min=0)].gather(2, places)
    values = torch.randn(1, B, K + 1, generator=generator, dtype=torch.float64).log_softmax(dim=2)
    absent = (TEACHER < 0).unsqueeze(2).repeat(1, 1, K)
    absent[0, 3, 1:] = True
    return SoftLabelBatch(
        ids=ids.masked_fill(absent, -1),
        log_probs=values[..., :K].masked_fill(absent, -torch.inf),
        log_tail=values[..., K].masked_fill(TEACHER < 0, -torch.inf),
        teacher=TEACHER,
    )


def leaves(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Features, weight and bias that want gradients."""
    generator = torch.Generator().manual_seed(1)
    shapes = ((B, D), (C, D), (C,))
    features, weight, bias = (
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes
    )
    return features.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()


def loss_of(name: str, logits: Tensor, rows: slice, weights: Tensor) -> Tensor:
    """The weighted sum of one of the losses over some rows."""
    soft = soft_labels().rows(rows)
    if name == "factorised":
        mass, divergence = factorised_kl(logits, soft, TABLE, temperature=2.0)
        return ((divergence - mass) * weights[rows].to(mass.dtype)).sum()
    table = WHOLE if name == "whole" else TABLE
    tail = "bucket" if name == "bucket" else "uniform"
    values = sparse_kl(logits, soft, table, temperature=2.0, tail=tail)
    return (values * weights[rows].to(values.dtype)).sum()


@settings(deadline=None, max_examples=15)
@given(
    st.sampled_from(["whole", "verticals", "bucket", "factorised"]),
    st.integers(1, 2 * B * C),
    st.booleans(),
    st.sampled_from([1.0, -0.3]),
)
def test_it_is_the_layer_and_the_loss(
    name: str, block_logits: int, with_bias: bool, scale: float
) -> None:
    """In float64 value and gradients are those of dense logits, whatever the blocks."""
    weights = torch.arange(1.0, B + 1)
    features, weight, bias = leaves()
    used = bias if with_bias else None
    inputs = [features, weight, *([bias] if with_bias else [])]
    whole = loss_of(name, functional.linear(features, weight, used), slice(0, B), weights)
    expected = torch.autograd.grad(scale * whole, inputs)
    value = fused_linear_loss(
        features,
        weight,
        used,
        lambda logits, rows: loss_of(name, logits, rows, weights),
        block_logits=block_logits,
    )
    torch.testing.assert_close(value, whole, rtol=0, atol=1e-11)
    for found, wanted in zip(torch.autograd.grad(scale * value, inputs), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-11)


def test_gradients_by_finite_differences() -> None:
    """Along a random direction of all inputs the value changes as the gradients say."""
    weights = torch.rand(B)

    def value(*inputs: Tensor) -> Tensor:
        return fused_linear_loss(
            *inputs, lambda x, rows: loss_of("whole", x, rows, weights), block_logits=2 * C
        )

    inputs = leaves()
    gradients = torch.autograd.grad(value(*inputs), inputs)
    steps = [1e-6 * torch.randn_like(tensor) for tensor in inputs]
    ahead = value(*(x.detach() + d for x, d in zip(inputs, steps, strict=True)))
    behind = value(*(x.detach() - d for x, d in zip(inputs, steps, strict=True)))
    expected = 2 * sum((g * d).sum() for g, d in zip(gradients, steps, strict=True))
    torch.testing.assert_close(ahead - behind, expected, rtol=1e-6, atol=1e-12)


def test_only_what_wants_a_gradient_gets_one() -> None:
    """A frozen classifier, and a value without any gradient."""
    weights = torch.ones(B)
    features, weight, bias = leaves()

    def fused(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return fused_linear_loss(x, w, b, lambda x, rows: loss_of("whole", x, rows, weights))

    value = fused(features, weight.detach(), bias.detach())
    value.backward()
    assert features.grad is not None
    assert weight.grad is bias.grad is None
    with torch.no_grad():
        assert fused(features, weight, bias) == value


def test_a_second_backward_pass_is_an_error() -> None:
    """The gradients were given away by the first: that is said."""
    value = fused_linear_loss(*leaves(), lambda logits, rows: logits.square().sum())
    value.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="compute the loss again"):
        value.backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_features(dtype: torch.dtype) -> None:
    """As under autocast: half features, float32 weights and their float32 gradients."""
    weights = torch.ones(B)
    features, weight, bias = leaves(torch.float32)
    half = features.detach().to(dtype).requires_grad_()
    logits = functional.linear(half, weight.to(dtype), bias.to(dtype))
    expected = loss_of("whole", logits, slice(0, B), weights)
    wanted = torch.autograd.grad(expected, (half, weight, bias))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = fused_linear_loss(
            half,
            weight,
            bias,
            lambda x, rows: loss_of("whole", x, rows, weights),
            block_logits=2 * C,
        )
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)
    for found, one in zip(torch.autograd.grad(value, (half, weight, bias)), wanted, strict=True):
        assert found.dtype == one.dtype
        torch.testing.assert_close(found, one, rtol=0.02, atol=0.02)


def test_no_batch_of_logits_is_made() -> None:
    """The loss never sees more rows than fit a block, and sees each row once, in order."""
    features, weight, bias = leaves()
    seen: list[int] = []

    def loss(logits: Tensor, rows: slice) -> Tensor:
        assert logits.numel() <= 2 * C
        seen.extend(range(B)[rows])
        return logits.sum()

    fused_linear_loss(features, weight, bias, loss, block_logits=2 * C)
    assert seen == list(range(B))
