"""What a student learns by: the settings of each objective, one class a method.

`reads` says which stores a run of the objective opens: `soft` labels, block `features`, or none.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pipeline.config.base import Fraction, Name, PositiveInt, Settings


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


class BlockSimilarity(Settings):
    """One block of the student beside the stored channel-mean maps of its teachers' blocks."""

    student: str = Field(description="module of the student, e.g. blocks.1")
    feature: str = Field(
        description="what is stored of the teachers, e.g. layer2.channel_mean, of every teacher "
        "that has it; TEACHER/layer2.channel_mean of one"
    )
    weight: float = Field(0.05, gt=0)

    def is_compared_with(self, teacher: str, array: str) -> bool:
        """Tell whether an array of a teacher's stored features is meant."""
        return self.feature in (array, f"{teacher}/{array}")


class Adversarial(Settings):
    """Discriminators that tell the student from its teachers, and the student's gain in hiding."""

    weight: float = Field(0.1, gt=0, description="of the reversed gradient that the student gets")
    classes: PositiveInt = Field(
        10, description="most probable classes of a stored label that are compared"
    )
    lr: float = Field(1e-3, gt=0, description="peak learning rate of the discriminators")


class Meal(Settings):
    """MEAL (Shen et al. 2019): several teachers of the same classes, and no hard labels."""

    name: Literal["meal"]
    teachers: tuple[Name, ...] | None = Field(None, description="who teaches; null: all")
    teacher: Literal["random", "mean"] = Field(
        "random", description="one drawn for each batch, or the mean of their probabilities"
    )
    temperature: float = Field(1.0, gt=0)
    blocks: tuple[BlockSimilarity, ...] = ()
    similarity: Literal["cross_entropy", "l1", "l2"] = "cross_entropy"
    adversarial: Adversarial | None = None

    @property
    def reads(self) -> frozenset[str]:
        """Features are opened only where a block is compared."""
        return frozenset({"soft", "features"} if self.blocks else {"soft"})

    def teaches(self, teacher: str) -> bool:
        """Tell whether a teacher of the project is one of the student's."""
        return self.teachers is None or teacher in self.teachers

    def problems_with(self, features: Mapping[str, Collection[str]]) -> list[str]:
        """Return one sentence per name that the project does not have.

        Args:
            features: Teacher -> names of what is stored of its blocks.
        """
        unknown = sorted(set(self.teachers or ()) - set(features))
        problems = []
        if unknown:
            problems.append(
                f"student.objective.teachers must be among {sorted(features)}, got {unknown}"
            )
        stored = [
            (name, array) for name in features if self.teaches(name) for array in features[name]
        ]
        for block in self.blocks:
            if not any(block.is_compared_with(name, array) for name, array in stored):
                problems.append(
                    "student.objective.blocks: feature must be one of "
                    f"{sorted({array for _, array in stored})}, got {block.feature!r}; list it "
                    "under teachers[].features"
                )
        return problems


ObjectiveConfig = Annotated[
    HardLabels | SoftLabels | KnowledgeConcentration | Meal, Field(discriminator="name")
]
