"""Specialists, and what is kept of what they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from pipeline.config.base import Fraction, Name, PositiveInt, Settings
from pipeline.config.training import InputConfig, TrainingConfig
from storage_schemas.soft_label_schema import Temperature


class SpecialistConfig(TrainingConfig):
    """How a teacher without weights is trained on its own rows (hard labels)."""

    label_smoothing: Fraction = 0.0


class VerticalClasses(Settings):
    """A teacher that names all classes of one vertical, in label space order."""

    vertical: str


class TeacherConfig(Settings):
    """One specialist: how it is built, loaded, fed, and what its outputs mean."""

    name: Name
    builder: str = Field(description="torchvision:NAME, timm:NAME or python:module:function")
    builder_args: dict[str, Any] = Field(default_factory=dict)
    weights: Path | None = Field(None, description="null: train it first on its own rows")
    classes: VerticalClasses | Path | tuple[str, ...] = Field(
        description="{vertical: NAME}, a text file with one class a line, or a list"
    )
    routing: Literal["own", "all"] = Field("own", description="which rows it labels")
    input: InputConfig = InputConfig()
    batch_size: PositiveInt = 256
    training: SpecialistConfig | None = Field(None, description="overrides `specialists`")


class LabelConfig(Settings):
    """What is kept of each teacher output."""

    k: int = Field(16, ge=1, le=1024)
    activation: Literal["softmax", "sigmoid"] = "softmax"
    temperatures: tuple[Temperature, ...] = Field((1.0,), min_length=1)
    precision: Literal["compact", "exact"] = "compact"
    shard_rows: PositiveInt | None = Field(None, description="null: by the number of rows")
    chunk_rows: PositiveInt | None = None

    @model_validator(mode="after")
    def _shards_hold_whole_chunks(self) -> LabelConfig:
        if len(set(self.temperatures)) != len(self.temperatures):
            raise ValueError(f"temperatures must differ, got {list(self.temperatures)}")
        if self.shard_rows and self.chunk_rows and self.shard_rows % self.chunk_rows:
            raise ValueError(
                f"shard_rows must be a multiple of chunk_rows, got {self.shard_rows} and "
                f"{self.chunk_rows}"
            )
        return self
