"""Which share of a run is done, for objectives whose weights change on the way.

The count of steps is a buffer, so that it is in every checkpoint and a resumed run goes on with
the weights of one that was never stopped. The learning rate needs no such thing: a second stage
would start its schedule and its optimizer anew.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Progress(nn.Module):
    """Counts the steps of training.

    Args:
        total_steps: Of the run, at least 1.
    """

    steps: Tensor

    def __init__(self, total_steps: int) -> None:
        super().__init__()
        if total_steps < 1:
            raise ValueError(f"total_steps must be at least 1, got {total_steps}")
        self.total_steps = total_steps
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self) -> Tensor:
        """Return the () share done before this step, and count the step when training."""
        share = self.steps / self.total_steps
        if self.training:
            self.steps += 1
        return share
