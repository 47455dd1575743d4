"""What a student learns by: the settings of each objective, one class a method.

`reads` says which stores a run of the objective opens: `soft` labels, block `features`, or none.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pipeline.config.base import Fraction, Settings


class HardLabels(Settings):
    """The control: cross-entropy with the human labels."""

    reads: ClassVar[frozenset[str]] = frozenset()

    name: Literal["hard_labels"]
    label_smoothing: Fraction = 0.0


class MultiLabel(Settings):
    """The control of sigmoid students: binary cross-entropy with labels and their ancestors."""

    reads: ClassVar[frozenset[str]] = frozenset()
    form: ClassVar[Literal["sigmoid"]] = "sigmoid"

    name: Literal["multi_label"]


class SoftLabels(Settings):
    """Sparse KL to the teachers' soft labels over all classes."""

    reads: ClassVar[frozenset[str]] = frozenset({"soft"})

    name: Literal["soft_labels"]
    temperature: float = Field(1.0, gt=0)
    tail: Literal["uniform", "bucket", "drop"] = "uniform"
    hard_weight: float = Field(0.0, ge=0, description="weight of an added hard-label loss")


class KnowledgeConcentration(Settings):
    """Knowledge Concentration (Gao et al. 2017), in either of two forms."""

    reads: ClassVar[frozenset[str]] = frozenset({"soft"})

    name: Literal["knowledge_concentration"]
    form: Literal["softmax", "sigmoid"] = "softmax"
    temperature: float = Field(1.0, gt=0)
    tail: Literal["uniform", "bucket", "drop"] = "uniform"
    vertical_weight: float = Field(
        1.0, ge=0, description="softmax form: weight of the loss that picks the vertical"
    )
    hard_weight: float = Field(0.0, ge=0)


ObjectiveConfig = Annotated[
    HardLabels | MultiLabel | SoftLabels | KnowledgeConcentration, Field(discriminator="name")
]
