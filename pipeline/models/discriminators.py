"""A discriminator: tells what a student says from what its teacher says.

In: the network of MEAL (Shen et al. 2019, arXiv 1812.02425), gradient reversal (Ganin & Lempitsky
2015, arXiv 1409.7495), and the loss of both sides in one backward pass. Left out: what is compared
(pipeline.objectives.meal).

Two things differ from the code that MEAL's authors released. Its last layer has a ReLU before the
logistic loss, which keeps the discriminator's loss above (ln 2) / 2 = 0.3466, where it then rests
and teaches nothing; here the output is one free logit. And its student descends on the same loss
as the discriminator, which helps it; here the gradient is reversed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional


class _ReverseGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: float) -> Tensor:
        ctx.weight = weight
        return values.view_as(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.weight * gradient, None


def reverse_gradient(values: Tensor, weight: float) -> Tensor:
    """Return the values; their gradient is multiplied by -weight on its way back."""
    reversed_: Tensor = _ReverseGradient.apply(values, weight)
    return reversed_


class Discriminator(nn.Module):
    """Three linear layers with ReLU between them; the inner ones are D / 2 and D / 4 wide.

    They are never narrower than 64 and 32: of the ten classes of a stored label two units would
    be left, and units so few are often all silent from the start.

    Args:
        width: D, of what it looks at.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        half, quarter = max(64, width // 2), max(32, width // 4)
        self.layers = nn.Sequential(
            nn.Linear(width, half),
            nn.ReLU(),
            nn.Linear(half, quarter),
            nn.ReLU(),
            nn.Linear(quarter, 1),
        )

    def forward(self, values: Tensor) -> Tensor:
        """Return (B,) logits that (B, D) values are a teacher's."""
        logits: Tensor = self.layers(values.float())
        return logits.squeeze(1)


def discriminate(
    discriminator: Discriminator, student: Tensor, teacher: Tensor, weight: float
) -> tuple[Tensor, Tensor]:
    """Return the discriminator's loss of each row and whether it was right.

    One backward pass trains both sides: the discriminator descends on its loss, the student
    climbs it with `weight` times the gradient.

    Args:
        discriminator: Of width D.
        student: (B, D), with a gradient.
        teacher: (B, D).
        weight: Of the student's side; 0 leaves the student alone.

    Returns:
        (B,) binary cross-entropy, ln 2 = 0.693 where the two cannot be told apart; (B,) share of
        the two that were recognised.
    """
    said_student = discriminator(reverse_gradient(student, weight))
    said_teacher = discriminator(teacher.detach())
    loss = (functional.softplus(said_student) + functional.softplus(-said_teacher)) / 2
    right = ((said_student < 0).float() + (said_teacher > 0).float()) / 2
    return loss, right
