"""Balanced Knowledge Distillation for long-tailed data.

Zhang, Chen, Hu, Peng, "Balanced Knowledge Distillation for Long-tailed Learning", 2021, arXiv
2104.10510. The teacher's distribution is weighted by class and normalised anew; the cross-entropy
is not weighted:

    CE(s, y) + alpha T^2 KL( normalise_c(w_c softmax(t / T)_c) || softmax(s / T) )
    w_c = (1 - b) / (1 - b^n_c),   n_c training rows of class c

In: both forms of the paper, weights from the first step or deferred (`balanced_from`, DRW). The
classes of a teacher are those of its support: its distribution is balanced inside its vertical.
Left out: the two ways to train the teacher; any store will do.

What is not stored cannot be weighted by itself: under top-k the tail is taken as even over the
classes left out, which are mostly the rare ones that this method is for. Store all classes
(`labels.k` of the largest vertical) for the method as published; `plan` says so.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.config import Balanced
from pipeline.numerics.reweighted import reweighted_kl
from pipeline.objectives.base import LabelContext, Objective, StudentOutput, TargetBatch
from pipeline.objectives.hard_labels import hard_label_loss
from pipeline.objectives.progress import Progress
from pipeline.objectives.targets import Supports, labelled_mean, required_soft_labels


def class_balanced_weights(counts: Tensor, beta: float) -> Tensor:
    """Return (C,) float64 inverse effective numbers of rows, of mean 1 (Cui et al. 2019).

    Args:
        counts: (C,) training rows of each class; a class without any counts as one of one row.
        beta: In [0, 1); 0 gives weights of 1.
    """
    weights = (1 - beta) / (1 - beta ** counts.clamp(min=1).double())
    return weights / weights.mean()


class BalancedObjective(Objective):
    """`kd_loss`, and `task_loss` when `hard_weight` is set.

    Raises:
        ValueError: If the context has no class counts, or no steps where weights are deferred.
    """

    log_weights: Tensor

    def __init__(self, config: Balanced, context: LabelContext) -> None:
        super().__init__()
        if context.class_counts is None:
            raise ValueError("balanced needs the training rows of each class")
        self.needs = frozenset({"soft", "labels"} if config.hard_weight else {"soft"})
        self._config = config
        self._supports = Supports(context)
        weights = class_balanced_weights(context.class_counts, config.beta)
        self.register_buffer("log_weights", weights.log(), persistent=False)
        self._progress = Progress(context.total_steps) if config.balanced_from else None

    def forward(self, output: StudentOutput, targets: TargetBatch) -> dict[str, Tensor]:
        """Return the loss terms.

        Raises:
            TrainingError: If a target is missing.
        """
        config = self._config
        soft = required_soft_labels(targets, config.name)
        log_weights = self.log_weights
        if self._progress is not None:
            balanced = self._progress() >= config.balanced_from
            log_weights = torch.where(balanced, log_weights, 0.0)
        divergence = reweighted_kl(
            output.logits,
            soft,
            self._supports.table(output.logits),
            log_weights,
            temperature=config.temperature,
        )
        terms = {"kd_loss": config.weight * config.temperature**2 * labelled_mean(divergence, soft)}
        if config.hard_weight:
            task = hard_label_loss(output.logits, targets, config.name)
            terms["task_loss"] = config.hard_weight * task
        return terms
