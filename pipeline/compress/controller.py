"""Weights of the blocks' regularisers that bring each block to its budget.

A PI controller in incremental form, one for each block, of the logarithm of its weight:

    error   = min(cost / budget - 1, 1)
    log w  += proportional * (error - previous error) + integral * error

so that the unknown scale of the weight is found by itself, and a cost that falls fast takes
pressure away before the budget is passed. The error is bounded, so that a small budget does not
make the weight rise too fast for the important channels to resist. While a block is within its
budget its regulariser is switched off: a channel that is gone seldom comes back.

In: the update, a pure function. Left out: where its state is kept (the objective's buffers).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class ControllerState(NamedTuple):
    """State of all controllers.

    Attributes:
        log_weight: (blocks,) logarithm of each weight.
        error: (blocks,) of the step before.
    """

    log_weight: Tensor
    error: Tensor


def start(blocks: int, weight: float) -> ControllerState:
    """Return the state before the first step.

    Args:
        blocks: How many.
        weight: The first weight of each.
    """
    log_weight = torch.full((blocks,), weight).log()
    return ControllerState(log_weight, torch.full((blocks,), torch.nan))


def update(
    state: ControllerState,
    costs: Tensor,
    budgets: Tensor,
    *,
    proportional: float,
    integral: float,
    largest: float,
) -> tuple[ControllerState, Tensor]:
    """Return the next state, and the (blocks,) weights to use now.

    Args:
        state: Of the step before.
        costs: (blocks,) at present.
        budgets: (blocks,) to reach.
        proportional: Gain on the change of the error.
        integral: Gain on the error, per step.
        largest: Upper bound of a weight, so that a block that does not answer yet does not wind
            up without end.
    """
    error = (costs / budgets - 1).clamp(max=1).to(state.log_weight.dtype)
    before = torch.where(state.error.isnan(), error, state.error)
    change = proportional * (error - before) + integral * error
    bound = torch.tensor(largest, dtype=error.dtype, device=error.device).log()
    log_weight = torch.minimum(state.log_weight + change, bound)
    weights = torch.where(error > 0, log_weight.exp(), torch.zeros_like(error))
    return ControllerState(log_weight, error), weights
