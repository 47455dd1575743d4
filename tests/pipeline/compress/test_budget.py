"""Regulariser, controller and budget: what they press on, and where they stop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.compress.budget import full_costs, within_budget
from pipeline.compress.channel_groups import ChannelGroups, channel_groups
from pipeline.compress.controller import start, update
from pipeline.compress.cost import cost
from pipeline.compress.regulariser import BlockSparsity, Resource, block_of
from pipeline.compress.surgery import cut_channels, kept_channels
from pipeline.config import InputConfig
from storage_schemas.errors import ConfigError


class Chain(nn.Module):
    """Two convolutions with normalisation, one after another, and a residual addition."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(8)
        self.fc: nn.Module = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm1(self.first(x)))
        return self.fc(torch.relu(x + self.norm2(self.second(x))).mean((2, 3)))


class Whole(nn.Module):
    """A chain and its reader, as a student has them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone, self.reader = Chain(), nn.Linear(8, 3)
        with torch.no_grad():
            self.backbone.norm1.weight.copy_(torch.linspace(0.1, 0.8, 8))
            self.backbone.norm2.weight.copy_(torch.linspace(0.8, 0.1, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.reader(self.backbone(x))


def groups_of(network: Whole) -> ChannelGroups:
    """The groups of a chain on 8 x 8 images."""
    image = torch.zeros(1, 1, 8, 8)
    return channel_groups(network.backbone, network.reader, image, names=("backbone", "reader"))


def sparsity_of(
    network: Whole, resource: Resource = "flops", threshold: float = 0.01
) -> BlockSparsity:
    """Each convolution with its normalisation is a block."""
    blocks = {
        "backbone.first": "a",
        "backbone.norm1": "a",
        "backbone.second": "b",
        "backbone.norm2": "b",
        "reader": "head",
    }
    return BlockSparsity(groups_of(network), blocks, resource=resource, threshold=threshold)


def test_added_channels_are_one_group_of_the_root_mean_square() -> None:
    """A channel of a residual chain is as strong as its members together."""
    network = Whole()
    sparsity = sparsity_of(network)
    groups = sparsity.groups
    assert np.array_equal(groups.scales["backbone.norm1"], groups.scales["backbone.norm2"])
    found = sparsity.strengths(network)[torch.from_numpy(groups.scales["backbone.norm1"])]
    one, two = network.backbone.norm1.weight, network.backbone.norm2.weight
    torch.testing.assert_close(found, ((one**2 + two**2) / 2).sqrt())


@pytest.mark.parametrize("resource", ["flops", "parameters"])
def test_regulariser_is_that_of_the_equation(resource: Resource) -> None:
    """Cost times (sum of scales in, times alive out; sum of scales out, times alive in)."""
    network = Whole()
    with torch.no_grad():  # one dead channel
        network.backbone.norm1.weight[3] = 0
        network.backbone.norm2.weight[3] = 0
    sparsity = sparsity_of(network, resource)
    strengths = sparsity.strengths(network).detach().requires_grad_()
    channels = torch.from_numpy(sparsity.groups.scales["backbone.norm1"])
    total = strengths[channels].sum().double()
    first, second = (9 * 2 * 64, 9 * 2 * 64) if resource == "flops" else (9, 9)
    norm, reader = (0, 2) if resource == "flops" else (2, 1)
    penalties = sparsity.penalties(strengths)
    expected = torch.stack(
        [
            first * 1 * total + norm * total,
            second * (7 * total + 7 * total) + norm * total,
            reader * 3 * total,
        ]
    )
    torch.testing.assert_close(penalties, expected)
    (gradient,) = torch.autograd.grad(penalties.sum(), strengths)
    assert (gradient[channels] > 0).all()
    assert not gradient[torch.from_numpy(sparsity.groups.held)].any()


@pytest.mark.parametrize("resource", ["flops", "parameters"])
@pytest.mark.parametrize("share", [0.9, 0.5, 0.25])
def test_blocks_are_cut_to_the_budget_and_no_further(resource: Resource, share: float) -> None:
    """Costs are within all budgets, with any channel more they are not, and the weakest went."""
    network = Whole()
    sparsity = sparsity_of(network, resource)
    strengths = sparsity.strengths(network).detach().double().numpy()
    shares = np.full(3, share)
    keep = within_budget(sparsity, strengths, shares)
    full = full_costs(sparsity)
    assert (sparsity.costs(torch.from_numpy(keep)).numpy() <= shares * full).all()
    for group in np.flatnonzero(~keep):
        more = keep.copy()
        more[group] = True
        assert (sparsity.costs(torch.from_numpy(more)).numpy() > shares * full).any()
    assert strengths[~keep].max() <= strengths[keep & ~sparsity.groups.held].min()


def test_costs_of_the_blocks_sum_to_that_of_the_cut_network() -> None:
    """What a budget speaks of is what torch counts after the surgery."""
    for resource in ("flops", "parameters"):
        network = Whole()
        sparsity = sparsity_of(network, resource)
        strengths = sparsity.strengths(network).detach().double().numpy()
        keep = within_budget(sparsity, strengths, np.full(3, 0.6))
        cut_channels(network, kept_channels(sparsity.groups, keep))
        found = cost(network, InputConfig(size=8, channels=1))
        assert getattr(found, resource) == sparsity.costs(torch.from_numpy(keep)).sum()


def test_channels_below_the_threshold_go_though_the_budget_is_met() -> None:
    """A block that came out below its budget stays there; each layer keeps a channel."""
    network = Whole()
    sparsity = sparsity_of(network, threshold=0.5)
    strengths = sparsity.strengths(network).detach().double().numpy()
    free = ~sparsity.groups.held
    keep = within_budget(sparsity, strengths, np.ones(3))
    assert np.array_equal(keep[free], strengths[free] > 0.5)
    assert within_budget(sparsity, np.zeros_like(strengths), np.ones(3))[free].sum() == 1


def test_an_impossible_budget_is_refused() -> None:
    """The error names the blocks and what is possible."""
    network = Whole()
    sparsity = sparsity_of(network)
    strengths = sparsity.strengths(network).detach().double().numpy()
    with pytest.raises(ConfigError, match=r"a: the budget is 0.100 of its flops, .* 0.125"):
        within_budget(sparsity, strengths, np.array([0.1, 0.5, 0.5]))


def test_weights_rise_until_a_block_answers_and_stop_at_its_budget() -> None:
    """A cost that falls with the pressure ends at its budget, and each block has its own weight."""
    state, costs, budgets = start(2, 0.1), torch.tensor([100.0, 100.0]), torch.tensor([50.0, 20.0])
    weights = torch.zeros(2)
    seen = []
    for _ in range(400):
        state, weights = update(state, costs, budgets, proportional=4.0, integral=0.05, largest=1e3)
        costs = costs * (1 - 0.002 * weights.clamp(max=5))
        seen.append(weights)
    assert (costs <= budgets).all()
    assert (costs > 0.95 * budgets).all()
    assert not weights.any()
    assert torch.stack(seen).max() <= 1e3
    assert seen[30][1] > seen[30][0] > 0.1


def test_blocks_have_the_longest_name_that_was_given() -> None:
    """Without a name, a block is that of the parent, in two parts; the reader is `head`."""
    assert block_of("backbone.layer1.0.conv1", ()) == "layer1.0"
    assert block_of("backbone.layer1.0.conv1", ("layer1", "layer1.0")) == "layer1.0"
    assert block_of("backbone.layer1.1.conv1", ("layer1", "layer1.0", "layer")) == "layer1"
    assert block_of("backbone.conv1", ("layer1",)) == "conv1"
    assert block_of("backbone.stem.0", ()) == block_of("backbone.stem.1", ()) == "stem"
    assert block_of("head.fc", ("layer1",)) == "head"
