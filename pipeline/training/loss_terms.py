"""From images and targets to the terms of the loss, as one module.

In: the network under autocast, then the objective outside it. One module, because
DistributedDataParallel averages the gradients of what it wraps, and both may train.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.objectives.base import Objective, TargetBatch


def _autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    wanted = precision == "bfloat16" or (
        precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported()
    )
    if not wanted:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


class LossTerms(nn.Module):
    """A network and its objective; holds every parameter that trains.

    Args:
        model: (B, channels, S, S) images to a `StudentOutput`.
        objective: From that and the targets to named scalars.
        precision: `auto` is bfloat16 autocast on a GPU that has it, float32 elsewhere.
    """

    def __init__(self, model: nn.Module, objective: Objective, precision: str) -> None:
        super().__init__()
        self.model, self.objective, self.precision = model, objective, precision

    def forward(self, images: Tensor, targets: TargetBatch) -> dict[str, Tensor]:
        """Return the scalar terms of a batch; the images say on which device."""
        forced = self.objective.forced(targets)
        with _autocast(self.precision, images.device):
            output = self.model(images, forced) if forced else self.model(images)
        terms: dict[str, Tensor] = self.objective(output, targets)
        return terms
