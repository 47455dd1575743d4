"""From images and targets to the terms of the loss, as one module.

In: the network under autocast, then the objective outside it; the same with a classifier whose
logits never exist as a whole; and either of them compiled. One module each, because
DistributedDataParallel averages the gradients of what it wraps, and both network and objective may
train.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.config import TrainingConfig
from pipeline.models.heads import LinearHead
from pipeline.models.student import Student
from pipeline.numerics.fused_classifier import fused_linear_loss
from pipeline.objectives.base import Objective, SumsOverRows, TargetBatch
from pipeline.objectives.method import Stage
from pipeline.objectives.targets import batch_mean
from storage_schemas.errors import TrainingError


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


class FusedLossTerms(nn.Module):
    """`LossTerms` of a student whose logits are computed a few rows at a time with their loss.

    Args:
        student: With a linear head.
        objective: Whose terms are sums over rows.
        precision: See `LossTerms`.

    Raises:
        TypeError: If the student or the objective is of another kind.
    """

    model: Student

    def __init__(self, student: nn.Module, objective: Objective, precision: str) -> None:
        super().__init__()
        if not (isinstance(student, Student) and isinstance(student.head, LinearHead)):
            raise TypeError("a fused classifier needs a student with a linear head")
        if not isinstance(objective, SumsOverRows):
            raise TypeError(f"{type(objective).__name__} needs all logits of a batch at once")
        self.model, self.objective, self.precision = student, objective, precision

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the backbone; the loss makes gradients as it goes, which cannot be traced."""
        self.model.backbone.compile(*args, **kwargs)

    def forward(self, images: Tensor, targets: TargetBatch) -> dict[str, Tensor]:
        """Return the scalar terms of a batch; one of them carries the gradient of their sum."""
        with _autocast(self.precision, images.device):
            features = self.model.features(images)
        counts = self.objective.row_counts(targets)
        shares = {
            name: batch_mean(features.new_ones((), dtype=torch.float32), count.sum())
            for name, count in counts.items()
        }
        terms = {name: torch.zeros_like(share) for name, share in shares.items()}

        def loss(logits: Tensor, rows: slice) -> Tensor:
            found = self.objective.row_terms(logits, targets.part(rows))
            sums = {name: values.sum() * shares[name] for name, values in found.items()}
            for name, value in sums.items():
                terms[name] += value.detach()
            return torch.stack([v for name, v in sums.items() if name.endswith("_loss")]).sum()

        head = self.model.head
        assert isinstance(head, LinearHead)
        total = fused_linear_loss(features, head.fc.weight, head.fc.bias, loss)
        carrier = next(name for name in terms if name.endswith("_loss"))
        return terms | {carrier: terms[carrier] + (total - total.detach())}


def build_loss_terms(model: nn.Module, stage: Stage, config: TrainingConfig) -> nn.Module:
    """Return what a stage trains, as one module from images and targets to terms.

    Raises:
        TypeError: If a fused classifier is wanted where there can be none.
    """
    kind = FusedLossTerms if stage.fused_classifier else LossTerms
    terms = kind(model, stage.objective, config.precision)
    if config.compile:
        terms.compile()  # in place: names of parameters stay
    return terms


@contextlib.contextmanager
def compiler_errors() -> Iterator[None]:
    """Say what to do about an error of torch.compile, which compiles when it is first called.

    Raises:
        TrainingError: In place of it.
    """
    try:
        yield
    except RuntimeError as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        raise TrainingError(
            f"compile: torch.compile failed with {type(error).__name__}: "
            f"{str(error).strip().splitlines()[0]}; it needs a C++ compiler, or Triton on a GPU: "
            "install it, or set compile: false"
        ) from error
