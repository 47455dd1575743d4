"""What a student learns by: the settings of each objective, one class a method.

`reads` says which stores a run of the objective opens: `soft` labels, block `features`, or none.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from pipeline.config.base import Fraction, Name, PositiveInt, Settings


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


class OnlineSubclassTerm(Settings):
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


class Balanced(Settings):
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


class PeerCollaborative(Settings):
    """Peer Collaborative Learning (Wu & Gong 2021): peers teach each other, no teacher."""

    reads: ClassVar[frozenset[str]] = frozenset()

    name: Literal["peer_collaborative"]
    peers: int = Field(3, ge=2, description="m: each is shown a view of its own of every image")
    stage: str = Field(
        "layer4", description="module of the backbone that each peer has of its own, by name"
    )
    softening: float = Field(3.0, gt=0, description="T of both distillation losses")
    ramp: Fraction = Field(
        0.25, description="share of the steps over which the distillation losses come in"
    )
    decay: float = Field(0.999, ge=0, lt=1, description="of the mean teacher, at its largest")
    ensemble_weight: float = Field(1.0, ge=0, description="0: no peer learns from the ensemble")
    mean_weight: float = Field(1.0, ge=0, description="0: no peer learns from the mean peers")
    label_smoothing: Fraction = 0.0


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
    | Meal,
    Field(discriminator="name"),
]
