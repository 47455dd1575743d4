"""The heads against their definitions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.models.heads import LinearHead, StructurallyConnectedHead, start_rare

# Verticals of 5, 2, 1 and 9 classes, interleaved.
M, D, S1, S2 = 4, 6, 8, 4
VERTICAL_OF = [0, 3, 0, 1, 3, 3, 2, 3, 0, 1, 3, 0, 3, 3, 0, 3, 3]
N = len(VERTICAL_OF)
PACES = ("none", "vertical", "class")
FORMS: list[dict[str, Any]] = [
    *({"shared": x} for x in (0, 2, S2)),
    {"connection": "fc_fc"},
    {"connection": "sc_sc"},
]


def head(**settings: object) -> StructurallyConnectedHead:
    """A small head for 6 features."""
    sizes = {"hidden": S1, "block": S2} | settings
    return StructurallyConnectedHead(D, VERTICAL_OF, **sizes)


def dense(layer: nn.Module, part: int, x: Tensor) -> Tensor:
    """One of the dense layers that a hidden layer is made of, at the gain and shift of its norm."""
    mine = slice(part * layer.width, (part + 1) * layer.width)
    y = x @ layer.dense.weight[mine].T
    over = 0 if isinstance(layer.norm, nn.BatchNorm1d) else 1
    variance = y.var(dim=over, unbiased=False, keepdim=True)
    y = (y - y.mean(dim=over, keepdim=True)) / (variance + layer.norm.eps).sqrt()
    return (y * layer.norm.weight[mine] + layer.norm.bias[mine]).relu()


def one_vertical_at_a_time(network: StructurallyConnectedHead, features: Tensor) -> Tensor:
    """The paper's definition as a loop."""
    logits = torch.empty(len(features), len(VERTICAL_OF), dtype=features.dtype)
    for vertical in range(4):
        own_first = vertical if network.hidden_layer.outputs > 1 else 0
        hidden = dense(network.hidden_layer, own_first, features)
        units = []
        if network.own_units is not None:
            units.append(dense(network.own_units, vertical, hidden))
        if network.shared_units is not None:
            units.append(dense(network.shared_units, 0, hidden))
        classes = [c for c, v in enumerate(VERTICAL_OF) if v == vertical]
        block = torch.cat(units, 1) @ network.weight[classes].T + network.bias[classes]
        if network.self_paced != "none":
            gamma = network.gamma[classes if network.self_paced == "class" else vertical]
            block = gamma * block / block.norm(dim=1, keepdim=True)
        logits[:, classes] = block
    return logits


@pytest.mark.parametrize("normalization", ["batch", "layer"])
@pytest.mark.parametrize("self_paced", PACES)
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_padded_products_equal_the_definition(
    form: dict[str, Any], self_paced: str, normalization: str
) -> None:
    """Values and gradients equal a loop over the verticals."""
    network = head(self_paced=self_paced, normalization=normalization, **form).double()
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


@pytest.mark.parametrize(
    ("form", "count"),
    [
        ({"connection": "fc_fc"}, D * S1 + S1 * S2 + S2 * N),
        ({"connection": "sc_sc"}, D * S1 * M + S1 * S2 * M + S2 * N),
        *(({"shared": x}, D * S1 + S1 * x + S1 * (S2 - x) * M + S2 * N) for x in range(S2 + 1)),
    ],
    ids=str,
)
def test_parameters_follow_the_formulas_of_the_paper(form: dict[str, Any], count: int) -> None:
    """Without biases and normalisation, for each of the four ways to connect."""
    assert sum(p.numel() for p in head(**form).parameters() if p.ndim == 2) == count


def test_sharing_all_units_is_no_structure() -> None:
    """FC(s1)-SC(s2, s2) is FC(s1)-FC(s2)."""
    plain, shared = head(connection="fc_fc"), head(shared=S2)
    plain.load_state_dict(shared.state_dict())
    features = torch.randn(3, D)
    assert torch.equal(plain(features), shared(features))


def test_signal_keeps_its_size_through_the_hidden_layers() -> None:
    """Units start with the mean square that ReLU gives of a standard normal, whatever comes in."""
    network = StructurallyConnectedHead(64, VERTICAL_OF, hidden=256, block=128, shared=32)
    units = network._units(0.01 * torch.randn(64, 64))
    assert units.square().mean().item() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("self_paced", PACES)
def test_rare_start_gives_every_class_a_small_probability(self_paced: str) -> None:
    """With m = log C, logits start near -log C, so the loss over all negatives near 1."""
    classes = 400
    network = StructurallyConnectedHead(
        64,
        [0] * 100 + [1] * 300,
        hidden=128,
        block=64,
        self_paced=self_paced,
        self_paced_init=math.log(classes),
    )
    network.start_rare()
    logits = network(torch.randn(32, 64))
    assert logits.mean().item() == pytest.approx(-math.log(classes), rel=0.15)
    assert functional.softplus(logits).sum(dim=1).mean().item() < 4
    linear = LinearHead(6, classes)
    start_rare(linear, classes)
    assert torch.equal(linear(torch.zeros(1, 6)), torch.full((1, classes), -math.log(classes)))
    other = nn.Sequential(nn.Linear(6, 3), nn.ReLU())
    before = other[0].bias.detach().clone()
    start_rare(other, classes)
    assert torch.equal(other[0].bias, before)


def test_gamma_grows_by_its_rate_under_adam() -> None:
    """One step of Adam moves gamma / sqrt(N_v) by `rate` times the learning rate."""
    network = head(self_paced="vertical", self_paced_rate=20.0)
    before = network.metrics()["gamma_over_sqrt_classes"]
    (-network.gamma.sum()).backward()
    torch.optim.Adam([network.pace], lr=0.01).step()
    assert network.metrics()["gamma_over_sqrt_classes"] - before == pytest.approx(0.2, rel=1e-3)


def test_gamma_starts_at_a_multiple_of_the_root_of_the_classes() -> None:
    """One gamma per vertical, or per class, near m sqrt(N_v); it takes no weight decay."""
    roots = torch.tensor([5.0, 2, 1, 9]).sqrt()
    vertical = head(self_paced="vertical", self_paced_init=3.0)
    torch.testing.assert_close(vertical.gamma.detach(), 3 * roots, rtol=0, atol=0.01)
    per_class = head(self_paced="class")
    torch.testing.assert_close(
        per_class.gamma.detach(), roots[torch.tensor(VERTICAL_OF)], rtol=0, atol=0.01
    )
    assert vertical.no_weight_decay() == {"pace"}
    assert head().no_weight_decay() == set()
    assert vertical.metrics()["gamma_over_sqrt_classes"] == pytest.approx(3.0, abs=0.01)
    assert head().metrics() == {}


@pytest.mark.parametrize("self_paced", PACES)
def test_state_round_trip(self_paced: str) -> None:
    """The state holds parameters and running statistics, no index; a copy gives the same."""
    network, other = head(self_paced=self_paced), head(self_paced=self_paced)
    features = torch.randn(2, 6)
    assert not torch.equal(network(features), other(features))
    other.load_state_dict(network.state_dict())
    statistics = {name for name in network.state_dict() if ".norm." in name}
    assert set(network.state_dict()) == statistics | {
        name for name, _ in network.named_parameters()
    }
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
    """The shared units are part of the block, and only blocks of a vertical can share."""
    with pytest.raises(ValueError, match="shared must be in"):
        head(shared=5)
    with pytest.raises(ValueError, match="shared must be 0 for sc_sc"):
        head(shared=1, connection="sc_sc")


def test_linear_head_is_one_dense_layer() -> None:
    """Its gain at the start is that of torch's linear layer."""
    network = LinearHead(6, 9)
    assert network(torch.zeros(2, 6)).shape == (2, 9)
    assert network.fc.weight.abs().max() <= 1 / math.sqrt(6)
