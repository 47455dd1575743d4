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
from pipeline.objectives.targets import batch_mean, required_labels

_UNLABELLED = -1


def hard_label_loss(
    logits: Tensor, targets: TargetBatch, objective: str, *, label_smoothing: float = 0.0
) -> Tensor:
    """Return the mean cross-entropy over the labelled images.

    A mixed image counts its two labels with the weights of its two images. Unlabelled images
    (-1) count nothing.

    Args:
        logits: (B, C).
        targets: Must hold `labels`; `partner_labels` and `mix_weight` where images were mixed.
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

    weight = (labels != _UNLABELLED).to(logits.dtype)
    if targets.partner_labels is None or targets.mix_weight is None:
        return batch_mean(terms(labels).sum(), weight.sum())
    partners, mix = targets.partner_labels, targets.mix_weight.to(logits.dtype)
    weight = mix * weight + (1 - mix) * (partners != _UNLABELLED)
    loss = mix * terms(labels) + (1 - mix) * terms(partners)
    return batch_mean(loss.sum(), weight.sum())


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
        loss = hard_label_loss(
            output.logits,
            targets,
            self._config.name,
            label_smoothing=self._config.label_smoothing,
        )
        return {"task_loss": loss}
