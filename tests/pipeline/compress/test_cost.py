"""Counts of parameters and operations."""

from __future__ import annotations

from torch import nn

from pipeline.compress.cost import cost
from pipeline.config import InputConfig


def test_cost_counts_parameters_and_operations() -> None:
    """A dense layer on n inputs takes 2 n m operations, a convolution 2 per weight and place."""
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 64, 10)
    )
    network.train()
    found = cost(network, InputConfig(size=8, channels=1))
    assert found.parameters == (36 + 4) + 8 + (2560 + 10)
    assert found.flops == 2 * 36 * 64 + 2 * 2560
    assert network.training
    assert int(network[1].num_batches_tracked) == 0
