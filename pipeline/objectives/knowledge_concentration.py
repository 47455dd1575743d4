"""Knowledge Concentration: 100K object classifiers in a single CNN.

Gao, Guo, Li, Nevatia, "Knowledge Concentration: Learning 100K Object Classifiers in a Single
CNN", 2017, arXiv 1711.07607.

In, `sigmoid` form: the paper's student loss L_s, binary cross-entropy over all N classes against
the top-k probabilities of the one teacher of the image's vertical, 0 elsewhere, summed over
classes and averaged over images. Teachers of classes with is-a parents answer for inner classes
too, so the hierarchy comes with their labels; `hard_weight` adds the human label and all its
ancestors (multi_label.py).

In, `softmax` form (ours, for single-label teachers): by the chain rule, KL over all classes is
the cross-entropy of choosing the vertical plus KL inside it. The two parts get their own weight,
and the temperature acts only on the part that the teacher knows about:

    vertical_weight * (logsumexp over all - logsumexp over the support)
    + T^2 KL(teacher || student restricted to the support)

With vertical_weight 1 and T = 1 this equals plain distillation over all classes. It is meant for
`own` routing, where a row's only teacher is that of its vertical.

Left out: the structurally connected head and self-paced scales, which are parts of the student
(pipeline.models.heads).
"""

from __future__ import annotations

from torch import Tensor

from pipeline.config import KnowledgeConcentration
from pipeline.numerics import factorised_kl, sparse_bce
from pipeline.objectives.base import LabelContext, Objective, StudentOutput, TargetBatch
from pipeline.objectives.hard_labels import hard_label_counts, hard_label_terms
from pipeline.objectives.multi_label import LabelClosure, multi_label_counts, multi_label_terms
from pipeline.objectives.targets import Supports, mean_terms, required_soft_labels, taught


class KnowledgeConcentrationObjective(Objective):
    """`kd_loss`; `vertical_loss` in softmax form; `task_loss` when `hard_weight` is set."""

    def __init__(self, config: KnowledgeConcentration, context: LabelContext) -> None:
        super().__init__()
        self.needs = frozenset({"soft", "labels"} if config.hard_weight else {"soft"})
        self._config = config
        self._supports = Supports(context)
        self._closure = LabelClosure(context)

    def forward(self, output: StudentOutput, targets: TargetBatch) -> dict[str, Tensor]:
        """Return the loss terms and, in softmax form, the metric `vertical_probability`.

        Raises:
            TrainingError: If a target is missing.
        """
        return mean_terms(self, output.logits, targets)

    def row_counts(self, targets: TargetBatch) -> dict[str, Tensor]:
        """See `SumsOverRows`."""
        config = self._config
        rows = taught(required_soft_labels(targets, config.name))
        if config.form == "sigmoid":
            counts = {"kd_loss": rows}
        else:
            counts = dict.fromkeys(("vertical_loss", "kd_loss", "vertical_probability"), rows)
        if config.hard_weight:
            count = multi_label_counts if config.form == "sigmoid" else hard_label_counts
            counts["task_loss"] = count(targets, config.name)
        return counts

    def row_terms(self, logits: Tensor, targets: TargetBatch) -> dict[str, Tensor]:
        """See `SumsOverRows`."""
        config = self._config
        if config.form == "sigmoid":
            return self._sigmoid(logits, targets)
        soft = required_soft_labels(targets, config.name)
        log_mass, divergence = factorised_kl(
            logits,
            soft,
            self._supports.table(logits),
            temperature=config.temperature,
            tail=config.tail,
        )
        terms = {
            "vertical_loss": -config.vertical_weight * log_mass,
            "kd_loss": config.temperature**2 * divergence,
            "vertical_probability": log_mass.detach().exp() * taught(soft),
        }
        if config.hard_weight:
            task = hard_label_terms(logits, targets, config.name)
            terms["task_loss"] = config.hard_weight * task
        return terms

    def _sigmoid(self, logits: Tensor, targets: TargetBatch) -> dict[str, Tensor]:
        config = self._config
        soft = required_soft_labels(targets, config.name)
        terms = {"kd_loss": sparse_bce(logits, soft) * taught(soft)}
        if config.hard_weight:
            task = multi_label_terms(logits, targets, self._closure, config.name)
            terms["task_loss"] = config.hard_weight * task
        return terms
