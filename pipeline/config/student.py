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
    """FC(s1)-SC(s2, x) of Knowledge Concentration: one shared layer, one block per vertical."""

    name: Literal["structurally_connected"]
    hidden: PositiveInt = Field(512, description="s1: width of the shared layer")
    block: PositiveInt = Field(128, description="s2: width each vertical's logits see")
    shared: int = Field(0, ge=0, description="x: how many of the s2 units all verticals share")
    self_paced: Literal["none", "vertical", "class"] = Field(
        "none", description="learned scale on each vertical's L2-normalised logits"
    )
    self_paced_init: float = Field(1.0, gt=0, description="multiple of sqrt(N_v) at the start")

    @model_validator(mode="after")
    def _shared_units_fit(self) -> StructurallyConnectedHead:
        if self.shared > self.block:
            raise ValueError(
                f"shared must be at most block ({self.block} units), got {self.shared}"
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
