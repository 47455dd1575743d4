"""The multi-label control: binary cross-entropy with human labels and all that they imply.

In: the teacher loss L_t of Knowledge Concentration (Gao et al. 2017, arXiv 1711.07607), which is
also what its generalist without distillation is trained on: the target of a class is 1 for the
image's own class and all its is-a ancestors, 0 for every other class; summed over classes,
averaged over images. Where classes have no parents only the class itself is 1. Mixed images count
the targets of both at their weights. Left out: weights of rare classes, label smoothing.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.config import MultiLabel
from pipeline.objectives.base import LabelContext, Objective, StudentOutput, TargetBatch
from pipeline.objectives.targets import mean_terms, required_labels

_UNLABELLED = -1


class LabelClosure:
    """The classes that an image of each class belongs to, kept on the device of the logits."""

    def __init__(self, context: LabelContext) -> None:
        own = torch.arange(context.num_classes).unsqueeze(1)
        self._table = own if context.closure is None else context.closure

    def summed(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return (B,) the sum of each row's logits over the closure of its label; 0 without one."""
        if self._table.device != logits.device:
            self._table = self._table.to(logits.device)
        classes = self._table[labels.clamp(min=0)]
        counts = (classes >= 0) & (labels != _UNLABELLED).unsqueeze(1)
        return torch.where(counts, logits.gather(1, classes.clamp(min=0)), 0.0).sum(dim=1)


def multi_label_counts(targets: TargetBatch, objective: str) -> Tensor:
    """Return (B,) bool which rows are labelled.

    Raises:
        TrainingError: If there are no hard labels.
    """
    return required_labels(targets, objective) != _UNLABELLED


def multi_label_terms(
    logits: Tensor, targets: TargetBatch, closure: LabelClosure, objective: str
) -> Tensor:
    """Return (B,) the binary cross-entropy of each row, 0 where it is unlabelled.

    Args:
        logits: (B, C).
        targets: Must hold `labels`; `partner_labels` and `mix_weight` where images were mixed.
        closure: Of the label space of the logits.
        objective: Who asks, for the error message.

    Raises:
        TrainingError: If there are no hard labels.
    """
    labels = required_labels(targets, objective)
    logits = logits.float() if logits.itemsize < 4 else logits
    agreed = closure.summed(logits, labels)
    if targets.partner_labels is not None and targets.mix_weight is not None:
        mix = targets.mix_weight.to(logits.dtype)
        agreed = mix * agreed + (1 - mix) * closure.summed(logits, targets.partner_labels)
    return (functional.softplus(logits).sum(dim=1) - agreed) * (labels != _UNLABELLED)


class MultiLabelObjective(Objective):
    """Binary cross-entropy with hard labels and their ancestors: `task_loss`."""

    def __init__(self, config: MultiLabel, context: LabelContext) -> None:
        super().__init__()
        self.needs = frozenset({"labels"})
        self._config = config
        self._closure = LabelClosure(context)

    def forward(self, output: StudentOutput, targets: TargetBatch) -> dict[str, Tensor]:
        """Return `task_loss`.

        Raises:
            TrainingError: If there are no hard labels.
        """
        return mean_terms(self, output.logits, targets)

    def row_counts(self, targets: TargetBatch) -> dict[str, Tensor]:
        """See `SumsOverRows`."""
        return {"task_loss": multi_label_counts(targets, self._config.name)}

    def row_terms(self, logits: Tensor, targets: TargetBatch) -> dict[str, Tensor]:
        """See `SumsOverRows`."""
        name = self._config.name
        return {"task_loss": multi_label_terms(logits, targets, self._closure, name)}
