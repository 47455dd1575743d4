"""Which blocks of a teacher are kept as features, and in what form."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from pipeline.config.base import PositiveInt, Settings


class FeatureConfig(Settings):
    """One block of a teacher, after a reduction."""

    block: str = Field(
        pattern=r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*$",
        max_length=200,
        description="a module of the teacher, as `named_modules` calls it",
    )
    reduce: Literal["channel_mean", "pool", "pca"] = Field(
        description="channel_mean: one map, the mean over channels; pool: all channels; pca: codes "
        "of the channels in a basis"
    )
    grid: int = Field(ge=1, le=256, description="pooled to at most grid x grid places")
    components: PositiveInt | None = Field(None, description="of pca, and only there")
    fit_share: float = Field(
        0.1, gt=0, le=1, description="rows that pca and uint8 are fitted on, before all labels"
    )
    dtype: Literal["float16", "uint8"] = "float16"

    @model_validator(mode="after")
    def _settings_fit_together(self) -> FeatureConfig:
        if (self.reduce == "pca") != (self.components is not None):
            wanted = "a number" if self.reduce == "pca" else "left out"
            raise ValueError(f"components must be {wanted} under {self.reduce}")
        return self

    @property
    def name(self) -> str:
        """Name of the array in the store."""
        return f"{self.block.replace('.', '_')}.{self.reduce}"

    @property
    def is_fitted(self) -> bool:
        """Whether something must be known of the teacher's features before they are stored."""
        return self.reduce == "pca" or self.dtype == "uint8"

    @property
    def settings(self) -> dict[str, Any]:
        """What the values depend on beside block, reduction and type, as JSON."""
        found: dict[str, Any] = {"grid": self.grid}
        if self.components is not None:
            found["components"] = self.components
        if self.is_fitted:
            found["fit_share"] = self.fit_share
        return found

    @property
    def parts(self) -> dict[str, Any]:
        """What of it belongs to a store's fingerprint."""
        return {"block": self.block, "reduce": self.reduce, "dtype": self.dtype, **self.settings}
