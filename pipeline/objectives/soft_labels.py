"""Plain distillation from stored soft labels (Hinton et al. 2015, arXiv 1503.02531).

In: T^2 KL(teacher || student) over all classes, where each teacher gives 0 outside its support,
plus an optional hard-label term. Left out: any structure of verticals
(knowledge_concentration.py).
"""

from __future__ import annotations

from torch import Tensor

from pipeline.config import SoftLabels
from pipeline.numerics import sparse_kl
from pipeline.objectives.base import LabelContext, Objective, StudentOutput, TargetBatch
from pipeline.objectives.hard_labels import hard_label_counts, hard_label_terms
from pipeline.objectives.targets import Supports, mean_terms, required_soft_labels, taught


class SoftLabelObjective(Objective):
    """Sparse KL over all classes: `kd_loss`, and `task_loss` when `hard_weight` is set."""

    def __init__(self, config: SoftLabels, context: LabelContext) -> None:
        super().__init__()
        self.needs = frozenset({"soft", "labels"} if config.hard_weight else {"soft"})
        self._config = config
        self._supports = Supports(context)

    def forward(self, output: StudentOutput, targets: TargetBatch) -> dict[str, Tensor]:
        """Return the loss terms.

        Raises:
            TrainingError: If a target is missing.
        """
        return mean_terms(self, output.logits, targets)

    def row_counts(self, targets: TargetBatch) -> dict[str, Tensor]:
        """See `SumsOverRows`."""
        config = self._config
        counts = {"kd_loss": taught(required_soft_labels(targets, config.name))}
        if config.hard_weight:
            counts["task_loss"] = hard_label_counts(targets, config.name)
        return counts

    def row_terms(self, logits: Tensor, targets: TargetBatch) -> dict[str, Tensor]:
        """See `SumsOverRows`."""
        config = self._config
        divergence = sparse_kl(
            logits,
            required_soft_labels(targets, config.name),
            self._supports.table(logits),
            temperature=config.temperature,
            tail=config.tail,
        )
        terms = {"kd_loss": config.temperature**2 * divergence}
        if config.hard_weight:
            task = hard_label_terms(logits, targets, config.name)
            terms["task_loss"] = config.hard_weight * task
        return terms
