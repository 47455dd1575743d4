"""Online Subclass Knowledge Distillation: a network learns from its own like samples, no teacher.

Tzelepi, Passalis, Tefas, "Efficient Online Subclass Knowledge Distillation for Image
Classification", ICPR 2020, pp. 1007-1014. Only the abstract was open to us: that similarities
inside a class carry what subclasses there are, in one stage, without a copy of the network. The
equations here are a reconstruction that fits it. For sample i with representation y_i, the mean
m_i of its K nearest samples of the same class, through which no gradient flows:

    distance:     || y_i - m_i ||^2, on vectors of unit length
    probability:  T^2 KL( mean of the partners' softmax at T || softmax of i at T )

Samples of one subclass attract each other, and those of another subclass are left alone. The two
controls tell that apart from any consistency inside a class: random partners of the class, and
all of them (the mean of the class, as in centre loss).

In: the term, alone or with the cross-entropy of the human labels, and the bank of representations
of earlier batches, which is part of every checkpoint. Several samples of a class must meet:
`student.samples_per_class`, or the bank. Left out: partners found beforehand by a teacher.
A mixed image (mixup, cutmix) is of no one class and has no partner. With `views_per_image` above
1, another view of the same image is a sample like any other, and mostly the nearest.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.config import HardLabels, OnlineSubclass, OnlineSubclassTerm
from pipeline.numerics.partners import best_partners, equal_weights, same_class
from pipeline.objectives.base import LabelContext, Objective, StudentOutput, TargetBatch
from pipeline.objectives.hard_labels import HardLabelObjective
from pipeline.objectives.summed import SummedObjective
from pipeline.objectives.targets import batch_mean, required_labels, rows_of_all_ranks

_NO_CLASS = -1


class SubclassTerm(Objective):
    """`subclass_loss`, and the metric `partner_share`: rows that have a partner.

    With a bank, the candidates are the batch and the last rows of the batches before it. The
    candidates of a rank are those of all ranks.
    """

    bank_points: Tensor
    bank_values: Tensor
    bank_labels: Tensor
    bank_next: Tensor

    def __init__(self, config: OnlineSubclassTerm, context: LabelContext) -> None:
        super().__init__()
        self.needs = frozenset({"labels"})
        self._config = config
        if config.bank:
            width = (
                context.feature_dim if config.representation == "features" else context.num_classes
            )
            self.register_buffer("bank_points", torch.zeros(config.bank, width))
            self.register_buffer("bank_labels", torch.full((config.bank,), _NO_CLASS))
            self.register_buffer("bank_next", torch.zeros((), dtype=torch.int64))
            if config.form == "probability":
                shape = (config.bank, context.num_classes)
                self.register_buffer("bank_values", torch.zeros(shape))

    def forward(self, output: StudentOutput, targets: TargetBatch) -> dict[str, Tensor]:
        """Return the terms; in training, also remember the batch in the bank.

        Raises:
            TrainingError: If there are no hard labels.
        """
        config = self._config
        labels = required_labels(targets, config.name)
        if targets.mix_weight is not None:
            labels = labels.masked_fill(targets.mix_weight < 1, _NO_CLASS)
        points = functional.normalize(_raised(getattr(output, config.representation)), dim=1)
        log_probs = _raised(output.logits).div(config.softening).log_softmax(dim=1)
        values = points if config.form == "distance" else log_probs.exp()
        with torch.no_grad():
            mean, found = self._partners(points, values, labels)
        if config.form == "distance":
            loss = (points - mean).square().sum(dim=1)
        else:
            divergence = torch.xlogy(mean, mean) - mean * log_probs
            loss = config.softening**2 * divergence.sum(dim=1)
        count = found.to(loss.dtype)
        return {
            "subclass_loss": config.weight * batch_mean((loss * count).sum(), count.sum()),
            "partner_share": count.mean(),
        }

    def _partners(self, points: Tensor, values: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the (B, D) mean of each row's partners, and (B,) whether it has any."""
        config = self._config
        all_points, first = rows_of_all_ranks(points)
        all_values = all_points if config.form == "distance" else rows_of_all_ranks(values)[0]
        all_labels, _ = rows_of_all_ranks(labels)
        known_points, known_values, known_labels = all_points, all_values, all_labels
        if config.bank:
            remembered = self.bank_values if config.form == "probability" else self.bank_points
            known_points = torch.cat([all_points, self.bank_points.to(all_points)])
            known_values = torch.cat([all_values, remembered.to(all_values)])
            known_labels = torch.cat([all_labels, self.bank_labels])
        allowed = same_class(labels, known_labels, first)
        if config.partner == "class_mean":
            weights = equal_weights(allowed.to(points.dtype))
        else:
            nearness = points @ known_points.T
            scores = nearness if config.partner == "nearest" else torch.rand_like(nearness)
            weights = best_partners(scores, allowed, config.neighbours)
        if config.bank and self.training:
            self._remember(all_points, all_values, all_labels)
        return weights.to(known_values) @ known_values, allowed.any(dim=1)

    def _remember(self, points: Tensor, values: Tensor, labels: Tensor) -> None:
        """Put the rows in the places of the oldest."""
        size = self._config.bank
        points, values, labels = points[-size:], values[-size:], labels[-size:]
        places = (self.bank_next + torch.arange(len(labels), device=labels.device)) % size
        self.bank_points[places] = points.to(self.bank_points)
        self.bank_labels[places] = labels
        if self._config.form == "probability":
            self.bank_values[places] = values.to(self.bank_values)
        self.bank_next.copy_((self.bank_next + len(labels)) % size)


class OnlineSubclassObjective(SummedObjective):
    """Cross-entropy and the term: `task_loss`, `subclass_loss`."""

    def __init__(self, config: OnlineSubclass, context: LabelContext) -> None:
        hard = HardLabels(name="hard_labels", label_smoothing=config.label_smoothing)
        super().__init__(HardLabelObjective(hard, context), SubclassTerm(config, context))


def _raised(values: Tensor) -> Tensor:
    return values.float() if values.itemsize < 4 else values
