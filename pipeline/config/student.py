"""The student: its head and its training; its objective is in objectives.py."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from pipeline.config.base import Name, PositiveInt, Settings
from pipeline.config.methods import PeerCollaborative
from pipeline.config.objectives import (
    Curriculum,
    ObjectiveConfig,
    OnlineSubclassTerm,
    SoftLabels,
)
from pipeline.config.training import InputConfig, TrainingConfig


class LinearHead(Settings):
    """One dense layer from the pooled features to all classes."""

    name: Literal["linear"] = "linear"


class StructurallyConnectedHead(Settings):
    """The hidden layers of Knowledge Concentration: dense (FC), or connected by vertical (SC)."""

    name: Literal["structurally_connected"]
    connection: Literal["fc_fc", "fc_sc", "sc_sc"] = Field(
        "fc_sc", description="fc_sc: one first layer, a second per vertical; fc_fc: no structure"
    )
    hidden: PositiveInt = Field(512, description="s1: width of the first layer")
    block: PositiveInt = Field(128, description="s2: width each vertical's logits see")
    shared: int = Field(0, ge=0, description="x: how many of the s2 units all verticals share")
    self_paced: Literal["none", "vertical", "class"] = Field(
        "none", description="learned scale on each vertical's L2-normalised logits"
    )
    self_paced_init: float | None = Field(
        None, gt=0, description="multiple of sqrt(N_v) at the start; null: 1, or log C for sigmoid"
    )
    self_paced_rate: float = Field(
        10.0, gt=0, description="learning rates that gamma / sqrt(N_v) moves in a step of Adam"
    )
    normalization: Literal["batch", "layer"] = Field(
        "batch", description="of the hidden layers; layer: each image on its own"
    )

    @model_validator(mode="after")
    def _shared_units_fit(self) -> StructurallyConnectedHead:
        if self.shared > self.block:
            raise ValueError(
                f"shared must be at most block ({self.block} units), got {self.shared}"
            )
        if self.shared and self.connection != "fc_sc":
            raise ValueError(
                f"shared must be 0 where connection is {self.connection}, got {self.shared}: only "
                "fc_sc has blocks that can share units"
            )
        return self


class StudentConfig(TrainingConfig):
    """The one network that learns all classes, and how."""

    left_out_unless_set: ClassVar[tuple[str, ...]] = (
        *TrainingConfig.left_out_unless_set,
        *("auxiliary", "curriculum", "samples_per_class", "fused_classifier"),
    )

    name: Name = "student"
    builder: str = "torchvision:resnet18"
    builder_args: dict[str, Any] = Field(default_factory=dict)
    input: InputConfig = InputConfig()
    head: Annotated[LinearHead | StructurallyConnectedHead, Field(discriminator="name")] = (
        LinearHead()
    )
    objective: ObjectiveConfig = SoftLabels(name="soft_labels")
    init: Name | None = Field(
        None, description="teacher of the same builder whose weights the student starts from"
    )
    auxiliary: tuple[OnlineSubclassTerm, ...] = Field(
        (), description="terms added to the loss of the objective; the control has none"
    )
    curriculum: Curriculum | None = Field(
        None, description="start with the rows that the teachers find easy; the control does not"
    )
    samples_per_class: PositiveInt | None = Field(
        None, description="images of one class that share a batch; null: as the shuffle has it"
    )
    fused_classifier: bool = Field(
        False,
        description="logits and loss of a few rows at a time, so that a batch of 100,000 classes "
        "takes a tenth of the memory; for a linear head and losses that are means over rows",
    )
    views_per_image: PositiveInt = Field(1, description="views drawn from one decoded image")
    devices: PositiveInt = Field(
        1, description="processes that share each batch, one a GPU where there are GPUs"
    )
    control: bool = Field(True, description="also train the same network on hard labels")
    allow_partial: bool = Field(
        False, description="train on the labels that exist, where some are still missing"
    )
    memory_budget_mb: int = Field(
        2048,
        ge=1,
        description="stored labels held in memory, and as much again of block features; above it, "
        "shards are streamed",
    )

    @model_validator(mode="after")
    def _every_device_has_images(self) -> StudentConfig:
        images = self.batch_size // self.views_per_image
        if self.devices > images:
            raise ValueError(
                f"devices must be at most the images of a batch (batch_size / views_per_image = "
                f"{images}), got {self.devices}"
            )
        return self

    @model_validator(mode="after")
    def _whole_classes_in_a_batch(self) -> StudentConfig:
        images, samples = self.batch_size // self.views_per_image, self.samples_per_class or 1
        if images % samples:
            raise ValueError(
                f"samples_per_class must divide the images of a batch (batch_size / "
                f"views_per_image = {images}), got {samples}"
            )
        if self.devices > images // samples:
            raise ValueError(
                f"devices must be at most the classes of a batch (images / samples_per_class = "
                f"{images // samples}), got {self.devices}"
            )
        return self

    @model_validator(mode="after")
    def _one_term_of_a_kind(self) -> StudentConfig:
        names = [term.name for term in (self.objective, *self.auxiliary)]
        doubles = sorted({name for name in names if names.count(name) > 1})
        if doubles:
            raise ValueError(f"objective and auxiliary must differ, got {doubles} more than once")
        return self

    @model_validator(mode="after")
    def _classifier_can_be_fused(self) -> StudentConfig:
        if not self.fused_classifier:
            return self
        if self.head.name != "linear":
            raise ValueError(f"fused_classifier needs head linear, got {self.head.name!r}")
        if not self.objective.by_rows or self.auxiliary:
            raise ValueError(
                "fused_classifier needs an objective whose terms are means over rows (hard_labels, "
                "multi_label, soft_labels, knowledge_concentration) and no auxiliary term, got "
                f"{[term.name for term in (self.objective, *self.auxiliary)]}"
            )
        return self

    @model_validator(mode="after")
    def _a_curriculum_fits(self) -> StudentConfig:
        if self.curriculum is None:
            return self
        if "soft" not in self.objective.reads:
            raise ValueError(
                "curriculum needs an objective that reads soft labels, which tell the easy rows, "
                f"got {self.objective.name!r}"
            )
        if self.curriculum.phases > self.epochs:
            raise ValueError(
                f"curriculum.phases must be at most epochs ({self.epochs}), got "
                f"{self.curriculum.phases}"
            )
        return self

    @model_validator(mode="after")
    def _each_peer_has_a_view(self) -> StudentConfig:
        objective = self.objective
        if isinstance(objective, PeerCollaborative) and objective.peers != self.views_per_image:
            raise ValueError(
                f"views_per_image must be the number of peers ({objective.peers}), each of which "
                f"is shown a view of its own, got {self.views_per_image}"
            )
        return self
