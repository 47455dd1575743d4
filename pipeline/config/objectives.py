"""What a student learns by: the settings of each objective, one class a method.

`reads` says which stores a run of the objective opens: `soft` labels, block `features`, or none.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from pipeline.config.base import Fraction, Settings


class HardLabels(Settings):
    """The control: cross-entropy with the human labels."""

    reads: ClassVar[frozenset[str]] = frozenset()

    name: Literal["hard_labels"]
    label_smoothing: Fraction = 0.0


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


class AmalgamatedLayer(Settings):
    """A block of the student, and what it is taught of the teachers' blocks."""

    block: str = Field(description="module of the student's backbone")
    features: str = Field(description="array that every teacher's feature store has")
    into: tuple[str, ...] = Field(
        (), description="all layers that read the block's output; needed for layerwise_share"
    )


class Amalgamation(Settings):
    """Knowledge amalgamation (Shen et al. 2019): a student of all specialists without a label."""

    hides_labels: ClassVar[bool] = True

    name: Literal["amalgamation"]
    scores: Literal["concatenated", "blocks"] = Field(
        "concatenated",
        description="blocks: a softmax for each teacher; concatenated: one over all classes",
    )
    sharpness: float = Field(
        5.0,
        ge=0,
        description="concatenated: how much more a teacher counts that is surer of an image than "
        "usual; 0: all teachers alike",
    )
    temperature: float = Field(1.0, gt=0)
    tail: Literal["uniform", "bucket", "drop"] = "uniform"
    vertical_weight: float = Field(
        1.0, ge=0, description="concatenated: weight of the loss that picks the teacher"
    )
    layers: tuple[AmalgamatedLayer, ...] = Field((), description="in the order of the network")
    layerwise_share: Fraction = Field(
        0.0, description="share of the epochs in which each layer learns by itself"
    )
    hint_weight: float = Field(
        0.0, ge=0, description="weight of the pooled codes of all layers in joint training"
    )

    @property
    def reads(self) -> frozenset[str]:
        """Soft labels, and block features where some are used."""
        used = bool(self.layerwise_share or self.hint_weight)
        return frozenset({"soft", "features"} if used else {"soft"})

    @model_validator(mode="after")
    def _layers_are_named(self) -> Amalgamation:
        if "features" in self.reads and not self.layers:
            raise ValueError("layerwise_share and hint_weight need layers, got none")
        unread = [layer.block for layer in self.layers if not layer.into]
        if self.layerwise_share and unread:
            raise ValueError(
                f"layerwise_share needs `into`, the layers that read a block's output, got none "
                f"for {unread}"
            )
        blocks = [layer.block for layer in self.layers]
        if len(set(blocks)) != len(blocks):
            raise ValueError(f"layers must be of different blocks, got {blocks}")
        return self


ObjectiveConfig = Annotated[
    HardLabels | SoftLabels | KnowledgeConcentration | Amalgamation, Field(discriminator="name")
]
