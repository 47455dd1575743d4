"""The control: cross-entropy with human labels.

In: label smoothing (Szegedy et al. 2016, arXiv 1512.00567, section 7) and the two labels of a
mixed image (mixup, Zhang et al. 2018, arXiv 1710.09412; cutmix, Yun et al. 2019, arXiv
1905.04899). Left out: class weights and any soft label.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from pipeline.config import HardLabels
from pipeline.objectives.base import LabelContext, Objective, StudentOutput, TargetBatch
from pipeline.objectives.targets import batch_mean, mean_terms, required_labels

_UNLABELLED = -1


def hard_label_counts(targets: TargetBatch, objective: str) -> Tensor:
    """Return (B,) float32 what each row counts: the weight of its labels.

    Args:
        targets: Must hold `labels`; `partner_labels` and `mix_weight` where images were mixed.
        objective: Who asks, for the error message.

    Raises:
        TrainingError: If there are no hard labels.
    """
    labelled = (required_labels(targets, objective) != _UNLABELLED).float()
    if targets.partner_labels is None or targets.mix_weight is None:
        return labelled
    mix = targets.mix_weight.float()
    return mix * labelled + (1 - mix) * (targets.partner_labels != _UNLABELLED)


def hard_label_terms(
    logits: Tensor, targets: TargetBatch, objective: str, *, label_smoothing: float = 0.0
) -> Tensor:
    """Return (B,) the cross-entropy of each row, 0 where it is unlabelled.

    A mixed image counts its two labels with the weights of its two images. Unlabelled images
    (-1) count nothing.

    Args:
        logits: (B, C).
        targets: As for `hard_label_counts`.
        objective: Who asks, for the error message.
        label_smoothing: Share of the target spread over all classes.

    Raises:
        TrainingError: If there are no hard labels.
    """
    labels = required_labels(targets, objective)
    logits = logits.float() if logits.itemsize < 4 else logits

    def terms(classes: Tensor) -> Tensor:
        return functional.cross_entropy(
            logits,
            classes,
            ignore_index=_UNLABELLED,
            reduction="none",
            label_smoothing=label_smoothing,
        )

    if targets.partner_labels is None or targets.mix_weight is None:
        return terms(labels)
    mix = targets.mix_weight.to(logits.dtype)
    return mix * terms(labels) + (1 - mix) * terms(targets.partner_labels)


def hard_label_loss(
    logits: Tensor, targets: TargetBatch, objective: str, *, label_smoothing: float = 0.0
) -> Tensor:
    """Return the mean of `hard_label_terms` over the labelled images.

    Raises:
        TrainingError: If there are no hard labels.
    """
    terms = hard_label_terms(logits, targets, objective, label_smoothing=label_smoothing)
    return batch_mean(terms.sum(), hard_label_counts(targets, objective).sum())


class HardLabelObjective(Objective):
    """Cross-entropy with hard labels: `task_loss`."""

    def __init__(self, config: HardLabels, context: LabelContext) -> None:
        super().__init__()
        self.needs = frozenset({"labels"})
        self._config = config

    def forward(self, output: StudentOutput, targets: TargetBatch) -> dict[str, Tensor]:
        """Return `task_loss`.

        Raises:
            TrainingError: If there are no hard labels.
        """
        return mean_terms(self, output.logits, targets)

    def row_counts(self, targets: TargetBatch) -> dict[str, Tensor]:
        """See `SumsOverRows`."""
        return {"task_loss": hard_label_counts(targets, self._config.name)}

    def row_terms(self, logits: Tensor, targets: TargetBatch) -> dict[str, Tensor]:
        """See `SumsOverRows`."""
        config = self._config
        return {
            "task_loss": hard_label_terms(
                logits, targets, config.name, label_smoothing=config.label_smoothing
            )
        }
