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


class Compact(Settings):
    """Compact CNN structure learning (Ahmed et al. 2020): learn widths, cut, fine-tune."""

    reads: ClassVar[frozenset[str]] = frozenset({"soft"})

    name: Literal["compact"]
    temperature: float = Field(4.0, gt=0)
    tail: Literal["uniform", "bucket", "drop"] = "uniform"
    soft_weight: Fraction = Field(
        0.9, description="a of (1 - a) CE + a T^2 KL; 1: no hard labels, 0: no soft labels"
    )
    resource: Literal["flops", "parameters"] = Field("flops", description="what budgets are of")
    budget: dict[str, Annotated[float, Field(gt=0, le=1)]] = Field(
        default={"default": 0.5},
        description="share of the uncut cost that each block may keep: `default`, and by name of "
        "a module of the network, or `head`",
    )
    per_block: bool = Field(True, description="false: one budget, and one weight, for all blocks")
    structure_share: float = Field(
        0.5, gt=0, lt=1, description="share of the epochs in which widths are learned"
    )
    threshold: float = Field(
        0.01, ge=0, description="scale of batch normalisation below which a channel is cut"
    )

    @model_validator(mode="after")
    def _budgets_are_told_apart(self) -> Compact:
        if "default" not in self.budget:
            raise ValueError(f"budget must have a default, got only {sorted(self.budget)}")
        if not self.per_block and len(self.budget) > 1:
            raise ValueError(
                f"budget must have no other entry than default where per_block is false, got "
                f"{sorted(self.budget)}"
            )
        return self


ObjectiveConfig = Annotated[
    HardLabels | SoftLabels | KnowledgeConcentration | Compact, Field(discriminator="name")
]
