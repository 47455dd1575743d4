"""The student: its head and its training; its objective is in objectives.py."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.config.base import Name, PositiveInt, Settings
from pipeline.config.objectives import ObjectiveConfig, SoftLabels
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

    name: Name = "student"
    builder: str = "torchvision:resnet18"
    builder_args: dict[str, Any] = Field(default_factory=dict)
    input: InputConfig = InputConfig()
    head: Annotated[LinearHead | StructurallyConnectedHead, Field(discriminator="name")] = (
        LinearHead()
    )
    objective: ObjectiveConfig = SoftLabels(name="soft_labels")
    views_per_image: PositiveInt = Field(1, description="views drawn from one decoded image")
    devices: PositiveInt = Field(
        1, description="processes that share each batch, one a GPU where there are GPUs"
    )
    control: bool = Field(True, description="also train the same network on hard labels")
    allow_partial: bool = Field(
        False, description="train on the labels that exist, where some are still missing"
    )
    memory_budget_mb: int = Field(
        2048, ge=1, description="stored labels held in memory; above it, shards are streamed"
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
