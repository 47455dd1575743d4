"""Schedules, weight decay and weight averaging."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from pipeline.config import ScheduleConfig
from pipeline.training.optimization import build_average, learning_rate_share, parameter_groups


@pytest.mark.parametrize("name", ["cosine", "one_cycle", "constant"])
def test_schedules_rise_and_fall(name):
    """Every schedule starts low, reaches its peak after the warm-up, and ends where it says."""
    config = ScheduleConfig(name=name, warmup=0.1, final=0.02)
    shares = [learning_rate_share(config, step, 100) for step in range(100)]
    assert shares[0] < 0.2
    assert max(shares) == pytest.approx(1.0)
    assert shares[9] == pytest.approx(1.0)
    if name != "constant":
        assert shares[-1] == pytest.approx(0.02, abs=0.01)
        assert all(a >= b for a, b in pairwise(shares[9:]))


def test_scales_biases_and_norms_have_no_weight_decay():
    """Only weights of two or more dimensions decay, minus what a module exempts."""

    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.gamma = nn.Parameter(torch.ones(3, 1))
            self.weight = nn.Parameter(torch.ones(3, 3))

        def no_weight_decay(self):
            return {"gamma"}

    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), Head())
    decayed, free = parameter_groups([model], 0.1)
    assert decayed["weight_decay"] == 0.1
    assert [tuple(p.shape) for p in decayed["params"]] == [(2, 2), (3, 3)]
    assert free["weight_decay"] == 0.0
    assert len(free["params"]) == 4


def test_average_follows_the_formula_and_copies_whole_numbers():
    """The average is decay * old + (1 - decay) * new, and integer buffers are copied."""
    model = nn.BatchNorm1d(2)
    model.register_buffer("table", torch.arange(200_000))
    average = build_average(model, 0.9)
    average.update_parameters(model)
    with torch.no_grad():
        model.weight.add_(1.0)
    average.update_parameters(model)
    assert torch.allclose(average.module.weight, torch.full((2,), 0.9 * 1 + 0.1 * 2))
    assert torch.equal(average.module.table, torch.arange(200_000))
