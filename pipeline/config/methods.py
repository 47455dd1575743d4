"""Settings of the objectives that are methods of their own: several teachers, stages or networks.

One class a paper, as in objectives.py, which has those of a single loss and the union of all.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from pipeline.config.base import Fraction, Name, ObjectiveSettings, PositiveInt, Settings


class ComparedBlock(Settings):
    """One block of the student beside what is stored of its teachers' blocks."""

    student: str = Field(description="module of the student, e.g. blocks.1")
    feature: str = Field(
        description="what is stored of the teachers, e.g. layer2.channel_mean, of every teacher "
        "that has it; TEACHER/layer2.channel_mean of one"
    )

    def is_compared_with(self, teacher: str, array: str) -> bool:
        """Tell whether an array of a teacher's stored features is meant."""
        return self.feature in (array, f"{teacher}/{array}")


def _unknown_features(
    setting: str, blocks: Iterable[ComparedBlock], stored: Collection[tuple[str, str]]
) -> Iterator[str]:
    """Yield one sentence per block that is compared with nothing of the (teacher, array) pairs."""
    for block in blocks:
        if not any(block.is_compared_with(*pair) for pair in stored):
            yield (
                f"student.objective.{setting}: feature must be one of "
                f"{sorted({array for _, array in stored})}, got {block.feature!r}; list it "
                "under teachers[].features"
            )


class BlockSimilarity(ComparedBlock):
    """One block of the student beside the stored channel-mean maps of its teachers' blocks."""

    weight: float = Field(0.05, gt=0)


class Adversarial(Settings):
    """Discriminators that tell the student from its teachers, and the student's gain in hiding."""

    weight: float = Field(0.1, gt=0, description="of the reversed gradient that the student gets")
    classes: PositiveInt = Field(
        10, description="most probable classes of a stored label that are compared"
    )
    lr: float = Field(1e-3, gt=0, description="peak learning rate of the discriminators")


class Meal(ObjectiveSettings):
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

    @property
    def label_temperature(self) -> float:
        """That of the loss."""
        return self.temperature

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
        return problems + list(_unknown_features("blocks", self.blocks, stored))


class AmalgamatedLayer(Settings):
    """A block of the student, and what it is taught of the teachers' blocks."""

    block: str = Field(description="module of the student's backbone")
    features: str = Field(description="array that every teacher's feature store has")
    into: tuple[str, ...] = Field(
        (), description="all layers that read the block's output; needed for layerwise_share"
    )


class Amalgamation(ObjectiveSettings):
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

    @property
    def label_temperature(self) -> float:
        """That of the loss."""
        return self.temperature

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


class Compact(ObjectiveSettings):
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

    @property
    def label_temperature(self) -> float:
        """That of the loss."""
        return self.temperature

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


class PeerCollaborative(ObjectiveSettings):
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


class SparseRepresentation(ObjectiveSettings):
    """Sparse Representation Matching (Tran et al. 2021): codewords first, then soft labels."""

    reads: ClassVar[frozenset[str]] = frozenset({"soft", "features"})

    name: Literal["sparse_representation"]
    layers: tuple[ComparedBlock, ...] = Field(
        min_length=1, description="blocks of the student; their features are codewords"
    )
    codeword_share: float = Field(
        0.4, gt=0, lt=1, description="share of the epochs in which codewords are learned"
    )
    place_weight: float = Field(1.0, ge=0, description="of the codeword most alike at each place")
    image_weight: float = Field(1.0, ge=0, description="of the codewords of the whole image")
    place_scores: Literal["logits", "sigmoids"] = Field(
        "logits",
        description="what the softmax over codewords is of; sigmoids: as in the released code",
    )
    targets: Literal["own", "shuffled"] = Field(
        "own", description="shuffled: codewords of another image of the batch; the control"
    )
    temperature: float = Field(4.0, gt=0)
    tail: Literal["uniform", "bucket", "drop"] = "uniform"
    hard_weight: float = Field(
        1.0, ge=0, description="(1 - a) / a of the paper's (1 - a) CE + a T^2 KL"
    )

    @property
    def label_temperature(self) -> float:
        """That of the loss."""
        return self.temperature

    @model_validator(mode="after")
    def _something_is_learned(self) -> SparseRepresentation:
        if not self.place_weight and not self.image_weight:
            raise ValueError("place_weight or image_weight must be above 0, got 0 for both")
        return self

    def problems_with(self, features: Mapping[str, Collection[str]]) -> list[str]:
        """Return one sentence per feature that no teacher has codewords of.

        Args:
            features: Teacher -> names of what is stored of its blocks.
        """
        stored = [
            (teacher, array)
            for teacher, arrays in features.items()
            for array in arrays
            if array.endswith(".codewords")
        ]
        return list(_unknown_features("layers", self.layers, stored))
