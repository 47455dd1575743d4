"""What a student learns by: the settings of each objective, one class a paper.

In: those of a single loss, and the union of all. Left out: those of several teachers, stages or
networks (methods.py).

What the rest of the pipeline may ask of them is declared by `ObjectiveSettings` (base.py).
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pipeline.config.base import Fraction, ObjectiveSettings, PositiveInt, Settings
from pipeline.config.methods import (
    Amalgamation,
    Compact,
    Meal,
    PeerCollaborative,
    SparseRepresentation,
)


class HardLabels(ObjectiveSettings):
    """The control: cross-entropy with the human labels."""

    reads: ClassVar[frozenset[str]] = frozenset()
    by_rows: ClassVar[bool] = True

    name: Literal["hard_labels"]
    label_smoothing: Fraction = 0.0


class MultiLabel(ObjectiveSettings):
    """The control of sigmoid students: binary cross-entropy with labels and their ancestors."""

    reads: ClassVar[frozenset[str]] = frozenset()
    by_rows: ClassVar[bool] = True
    activation: ClassVar[Literal["sigmoid"]] = "sigmoid"

    name: Literal["multi_label"]


class SoftLabels(ObjectiveSettings):
    """Sparse KL to the teachers' soft labels over all classes."""

    reads: ClassVar[frozenset[str]] = frozenset({"soft"})
    by_rows: ClassVar[bool] = True

    name: Literal["soft_labels"]
    temperature: float = Field(1.0, gt=0)
    tail: Literal["uniform", "bucket", "drop"] = "uniform"
    hard_weight: float = Field(0.0, ge=0, description="weight of an added hard-label loss")

    @property
    def label_temperature(self) -> float:
        """That of the loss."""
        return self.temperature


class KnowledgeConcentration(ObjectiveSettings):
    """Knowledge Concentration (Gao et al. 2017), in either of two forms."""

    reads: ClassVar[frozenset[str]] = frozenset({"soft"})
    by_rows: ClassVar[bool] = True

    name: Literal["knowledge_concentration"]
    form: Literal["softmax", "sigmoid"] = "softmax"
    temperature: float = Field(1.0, gt=0)
    tail: Literal["uniform", "bucket", "drop"] = "uniform"
    vertical_weight: float = Field(
        1.0, ge=0, description="softmax form: weight of the loss that picks the vertical"
    )
    hard_weight: float = Field(0.0, ge=0)

    @property
    def label_temperature(self) -> float:
        """That of the loss."""
        return self.temperature

    @property
    def activation(self) -> Literal["softmax", "sigmoid"]:
        """That of the form."""
        return self.form


class OnlineSubclassTerm(ObjectiveSettings):
    """The term of Online Subclass KD (Tzelepi et al. 2020), to be added to any loss."""

    reads: ClassVar[frozenset[str]] = frozenset()

    name: Literal["online_subclass"]
    weight: float = Field(0.1, ge=0, description="lambda; 0 leaves the other loss alone")
    form: Literal["distance", "probability"] = Field(
        "distance",
        description="distance: squared L2 of unit vectors to the partners' mean; "
        "probability: KL to the partners' mean softmax",
    )
    representation: Literal["features", "logits"] = Field(
        "features", description="what partners are near in, and what the distance form draws"
    )
    neighbours: PositiveInt = Field(1, description="K: partners of the same class")
    partner: Literal["nearest", "random", "class_mean"] = Field(
        "nearest", description="random and class_mean are the controls"
    )
    bank: int = Field(0, ge=0, description="rows remembered of earlier batches, as candidates")
    softening: float = Field(4.0, gt=0, description="temperature of the probability form")


class OnlineSubclass(OnlineSubclassTerm):
    """Cross-entropy with the human labels plus the term of Online Subclass KD; no teacher."""

    label_smoothing: Fraction = 0.0


class Balanced(ObjectiveSettings):
    """Balanced KD (Zhang et al. 2021): soft labels re-weighted by class, for long tails."""

    reads: ClassVar[frozenset[str]] = frozenset({"soft"})

    name: Literal["balanced"]
    temperature: float = Field(2.0, gt=0)
    weight: float = Field(1.0, ge=0, description="alpha: of the distillation loss")
    hard_weight: float = Field(1.0, ge=0, description="of the unweighted cross-entropy")
    beta: float = Field(
        0.9999,
        ge=0,
        lt=1,
        description="weight of a class of n rows: (1 - beta) / (1 - beta^n); 0: plain distillation",
    )
    balanced_from: Fraction = Field(
        0.0, description="share of the steps after which classes are weighted (deferred: DRW)"
    )

    @property
    def label_temperature(self) -> float:
        """That of the loss."""
        return self.temperature


class Curriculum(Settings):
    """Which rows are trained on when: a pool that grows from the easy ones to all (Zhao 2021)."""

    difficulty: Literal["true_class", "entropy"] = Field(
        "true_class",
        description="true_class: 1 - the teachers' probability of the hard label; entropy: theirs",
    )
    first: Literal["easy", "hard", "random"] = Field(
        "easy", description="who is in the first pool; hard and random are the controls"
    )
    start: float = Field(0.4, gt=0, le=1, description="f0: share of the rows in the first pool")
    phases: PositiveInt = Field(3, description="pools, the last with all rows; equal epochs each")


ObjectiveConfig = Annotated[
    HardLabels
    | MultiLabel
    | SoftLabels
    | KnowledgeConcentration
    | Compact
    | OnlineSubclass
    | Balanced
    | PeerCollaborative
    | Meal
    | Amalgamation
    | SparseRepresentation,
    Field(discriminator="name"),
]
