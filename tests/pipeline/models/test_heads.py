"""The heads against their definitions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pipeline.models.heads import LinearHead, StructurallyConnectedHead

# Verticals of 5, 2, 1 and 9 classes, interleaved.
VERTICAL_OF = [0, 3, 0, 1, 3, 3, 2, 3, 0, 1, 3, 0, 3, 3, 0, 3, 3]
PACES = ("none", "vertical", "class")


def head(**settings: object) -> StructurallyConnectedHead:
    """A small head for 6 features."""
    sizes = {"hidden": 8, "block": 4} | settings
    return StructurallyConnectedHead(6, VERTICAL_OF, **sizes)


def one_vertical_at_a_time(network: StructurallyConnectedHead, features: Tensor) -> Tensor:
    """The paper's definition as a loop."""
    hidden = network.fc(features).relu()
    logits = torch.empty(len(features), len(VERTICAL_OF), dtype=features.dtype)
    for vertical in range(4):
        units = []
        if network.own_units is not None:
            rows = slice(vertical * network.own, (vertical + 1) * network.own)
            own = hidden @ network.own_units.weight[rows].T + network.own_units.bias[rows]
            units.append(own.relu())
        if network.shared_units is not None:
            units.append(network.shared_units(hidden).relu())
        classes = [c for c, v in enumerate(VERTICAL_OF) if v == vertical]
        block = torch.cat(units, 1) @ network.weight[classes].T + network.bias[classes]
        if network.self_paced != "none":
            gamma = network.gamma[classes if network.self_paced == "class" else vertical]
            block = gamma * block / block.norm(dim=1, keepdim=True)
        logits[:, classes] = block
    return logits


@pytest.mark.parametrize("self_paced", PACES)
@pytest.mark.parametrize("shared", [0, 1, 4])
def test_padded_products_equal_the_definition(shared: int, self_paced: str) -> None:
    """Values and gradients equal a loop over the verticals."""
    network = head(shared=shared, self_paced=self_paced).double()
    features = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(3, len(VERTICAL_OF), dtype=torch.float64)
    inputs = [features, *network.parameters()]
    found = network(features)
    expected = one_vertical_at_a_time(network, features)
    torch.testing.assert_close(found, expected)
    for mine, theirs in zip(
        torch.autograd.grad((found * weights).sum(), inputs),
        torch.autograd.grad((expected * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("shared", [0, 1, 4])
def test_parameters_follow_the_formula_of_the_paper(shared: int) -> None:
    """Without biases: D s1 + s1 x + s1 (s2 - x) M + s2 N."""
    network = head(shared=shared)
    count = sum(p.numel() for n, p in network.named_parameters() if "bias" not in n)
    assert count == 6 * 8 + 8 * shared + 8 * (4 - shared) * 4 + 4 * len(VERTICAL_OF)


def test_gamma_starts_at_a_multiple_of_the_root_of_the_classes() -> None:
    """One gamma per vertical, or per class, near m sqrt(N_v); it takes no weight decay."""
    roots = torch.tensor([5.0, 2, 1, 9]).sqrt()
    vertical = head(self_paced="vertical", self_paced_init=3.0)
    torch.testing.assert_close(vertical.gamma.detach(), 3 * roots, rtol=0, atol=0.01)
    per_class = head(self_paced="class")
    torch.testing.assert_close(
        per_class.gamma.detach(), roots[torch.tensor(VERTICAL_OF)], rtol=0, atol=0.01
    )
    assert vertical.no_weight_decay() == {"gamma"}
    assert head().no_weight_decay() == set()
    assert vertical.metrics()["gamma_over_sqrt_classes"] == pytest.approx(3.0, abs=0.01)
    assert head().metrics() == {}


@pytest.mark.parametrize("self_paced", PACES)
def test_state_round_trip(self_paced: str) -> None:
    """The state holds parameters only, and a loaded copy gives the same logits."""
    network, other = head(self_paced=self_paced), head(self_paced=self_paced)
    features = torch.randn(2, 6)
    assert not torch.equal(network(features), other(features))
    other.load_state_dict(network.state_dict())
    assert set(network.state_dict()) == {name for name, _ in network.named_parameters()}
    assert torch.equal(network(features), other(features))


def test_zero_logits_have_a_finite_gradient() -> None:
    """The normalisation survives logits that are all zero."""
    network = head(self_paced="vertical")
    for parameter in (network.weight, network.bias):
        torch.nn.init.zeros_(parameter)
    network(torch.randn(2, 6)).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


def test_autocast_keeps_self_paced_logits_in_float32() -> None:
    """Under bfloat16 autocast the head runs, and the scaled logits are float32."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert head(self_paced="vertical")(torch.randn(2, 6)).dtype == torch.float32
        assert head()(torch.randn(2, 6)).isfinite().all()


def test_too_many_shared_units_are_refused() -> None:
    """The shared units are part of the block."""
    with pytest.raises(ValueError, match="shared must be in"):
        head(shared=5)


def test_linear_head_is_one_dense_layer() -> None:
    """Its gain at the start is that of torch's linear layer."""
    network = LinearHead(6, 9)
    assert network(torch.zeros(2, 6)).shape == (2, 9)
    assert network.fc.weight.abs().max() <= 1 / math.sqrt(6)
