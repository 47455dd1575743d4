"""Specialists, and what is kept of what they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from pipeline.config.base import Fraction, Name, PositiveInt, Settings
from pipeline.config.features import FeatureConfig
from pipeline.config.training import InputConfig, TrainingConfig
from storage_schemas.selection import Selection, selection_problems
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
    features: tuple[FeatureConfig, ...] = Field(
        (), description="blocks whose features are stored beside the labels of training rows"
    )

    @model_validator(mode="after")
    def _features_have_names_of_their_own(self) -> TeacherConfig:
        names = [feature.name for feature in self.features]
        doubles = sorted({name for name in names if names.count(name) > 1})
        if doubles:
            raise ValueError(f"features must differ in block or reduce, got {doubles} twice")
        return self


DEFAULT_TOP_P = 0.95


class LabelConfig(Settings):
    """What is kept of each teacher output.

    The store of the test rows is always top_k: specialists are scored from it.
    """

    k: int = Field(16, ge=1, le=1024, description="classes kept at most; draws under sampled")
    selection: Selection = Field(
        "top_k",
        description="top_k: the k most probable classes; top_p: the fewest of them whose mass at "
        "the first temperature reaches `top_p`; sampled: k draws with counts (unbiased, no tail)",
    )
    top_p: float | None = Field(
        None, gt=0, le=1, description=f"only under top_p, then {DEFAULT_TOP_P} unless given"
    )
    activation: Literal["softmax", "sigmoid"] = "softmax"
    temperatures: tuple[Temperature, ...] = Field((1.0,), min_length=1)
    precision: Literal["compact", "exact"] = "compact"
    shard_rows: PositiveInt | None = Field(None, description="null: by the number of rows")
    chunk_rows: PositiveInt | None = None

    @model_validator(mode="before")
    @classmethod
    def _a_nucleus_has_a_mass(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("selection") == "top_p":
            given = values.get("top_p")
            return values | {"top_p": DEFAULT_TOP_P if given is None else given}
        return values

    @model_validator(mode="after")
    def _settings_fit_together(self) -> LabelConfig:
        if len(set(self.temperatures)) != len(self.temperatures):
            raise ValueError(f"temperatures must differ, got {list(self.temperatures)}")
        problems = selection_problems(self)
        if problems:
            raise ValueError("; ".join(problems))
        if self.shard_rows and self.chunk_rows and self.shard_rows % self.chunk_rows:
            raise ValueError(
                f"shard_rows must be a multiple of chunk_rows, got {self.shard_rows} and "
                f"{self.chunk_rows}"
            )
        return self
