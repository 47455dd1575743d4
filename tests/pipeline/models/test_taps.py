"""Taps see what modules return, and leave no trace in the network."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from pipeline.models.taps import BlockTaps
from storage_schemas.errors import ConfigError


@pytest.fixture
def network():
    """A convolution, an activation in place, and an inner block."""
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(inplace=True))
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), inner, nn.Flatten())


def hooks_of(network):
    """How many forward hooks all modules have."""
    return sum(len(module._forward_hooks) for module in network.modules())


@pytest.mark.parametrize("inference", [False, True])
def test_outputs_are_those_of_the_modules(network, inference):
    """An activation in place does not change what was recorded before it."""
    images = torch.randn(2, 1, 5, 5)
    with torch.inference_mode(inference), BlockTaps(network, ["0", "2.0"]) as taps:
        network(images)
        found = taps.take()
        assert torch.equal(found["0"], network[0](images))
        assert torch.equal(found["2.0"], network[2][0](network[0](images).relu()))
        assert found["0"].requires_grad is not inference


def test_gradients_flow_through_a_tap(network):
    """A loss on a tapped block reaches the weights before it, and only those."""
    with BlockTaps(network, ["0"]) as taps:
        network(torch.randn(2, 1, 5, 5))
        taps.take()["0"].sum().backward()
    assert network[0].weight.grad is not None
    assert network[2][0].weight.grad is None


def test_nothing_is_left_behind(network):
    """State, hooks and modules are as before, also when the pass raises."""
    before = list(network.state_dict())
    with BlockTaps(network, ["0", "2"]):
        assert list(network.state_dict()) == before
        assert hooks_of(network) == 2
    with pytest.raises(RuntimeError), BlockTaps(network, ["0"]):
        network(torch.randn(2, 3, 5, 5))
    assert hooks_of(network) == 0


def test_a_copy_records_nothing(network):
    """An average of weights, made in the middle of training, leaves the original's taps alone."""
    with BlockTaps(network, ["0"]) as taps:
        network(torch.randn(2, 1, 5, 5))
        average, twin = AveragedModel(network), copy.deepcopy(network)
        first = taps.take()["0"]
        network(torch.zeros(2, 1, 5, 5))
        average(torch.ones(2, 1, 5, 5))
        twin(torch.ones(2, 1, 5, 5))
        assert not torch.equal(taps.take()["0"], first)
        average(torch.ones(2, 1, 5, 5))
        with pytest.raises(ConfigError, match="does not run"):
            taps.take()


def test_what_is_kept_is_chosen_in_the_pass(network):
    """A function of the output replaces the output."""
    with BlockTaps(network, ["2"], lambda name, output: output.mean(dim=(2, 3))) as taps:
        network(torch.randn(2, 1, 5, 5))
        assert taps.take()["2"].shape == (2, 4)


def test_an_unknown_block_is_refused_with_those_there_are(network):
    """The message lists the modules of the network."""
    with pytest.raises(ConfigError, match=r"'2\.0', '2\.1'\], got '2\.7'"):
        BlockTaps(network, ["0", "2.7"])
    assert hooks_of(network) == 0
