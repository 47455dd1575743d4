"""Which blocks of a teacher are kept as features, and in what form."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from pipeline.config.base import PositiveInt, Settings

# Arrays that a reduction stores beside the one of its own name.
FURTHER_ARRAYS = {"codewords": ("codeword_means",)}


class DictionaryConfig(Settings):
    """The dictionary of codewords of Sparse Representation Matching (Tran et al. 2021)."""

    multiple: float = Field(2.0, gt=0, le=64, description="codewords for each channel of the block")
    sparsity: float = Field(
        0.02, gt=0, le=1, description="share of the codewords that a position keeps, at least one"
    )
    steps: PositiveInt = Field(1500, description="of Adam, when it is fitted")
    seed: int = Field(0, ge=0, lt=2**63, description="of the positions that it is fitted on")

    def codewords(self, channels: int) -> int:
        """Return M for a block of some channels."""
        return max(1, round(self.multiple * channels))

    def kept(self, channels: int) -> int:
        """Return how many of them a position keeps."""
        return max(1, round(self.sparsity * self.codewords(channels)))


class FeatureConfig(Settings):
    """One block of a teacher, after a reduction."""

    block: str = Field(
        pattern=r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*$",
        max_length=200,
        description="a module of the teacher, as `named_modules` calls it",
    )
    reduce: Literal["channel_mean", "pool", "pca", "codewords"] = Field(
        description="channel_mean: one map, the mean over channels; pool: all channels; pca: codes "
        "of the channels in a basis; codewords: ids in a dictionary, and how much of each there is"
    )
    grid: int = Field(ge=1, le=256, description="pooled to at most grid x grid places")
    components: PositiveInt | None = Field(None, description="of pca, and only there")
    dictionary: DictionaryConfig | None = Field(None, description="of codewords, and only there")
    fit_share: float = Field(
        0.1,
        gt=0,
        le=1,
        description="rows that pca, codewords and uint8 are fitted on, before all labels",
    )
    dtype: Literal["float16", "uint8"] = Field(
        "float16", description="of codewords always float16, with uint16 ids"
    )

    @model_validator(mode="after")
    def _settings_fit_together(self) -> FeatureConfig:
        if (self.reduce == "pca") != (self.components is not None):
            wanted = "a number" if self.reduce == "pca" else "left out"
            raise ValueError(f"components must be {wanted} under {self.reduce}")
        if (self.reduce == "codewords") != (self.dictionary is not None):
            wanted = "given, {} for its defaults," if self.dictionary is None else "left out"
            raise ValueError(f"dictionary must be {wanted} under {self.reduce}")
        if self.reduce == "codewords" and self.dtype != "float16":
            raise ValueError(f"dtype must be left out under codewords, got {self.dtype}")
        return self

    @property
    def name(self) -> str:
        """Name of the array in the store; where it has several, of the first."""
        return self.array_names[0]

    @property
    def array_names(self) -> tuple[str, ...]:
        """Names of all its arrays in the store."""
        block = self.block.replace(".", "_")
        reduces = (self.reduce, *FURTHER_ARRAYS.get(self.reduce, ()))
        return tuple(f"{block}.{reduce}" for reduce in reduces)

    @property
    def is_fitted(self) -> bool:
        """Whether something must be known of the teacher's features before they are stored."""
        return self.reduce in ("pca", "codewords") or self.dtype == "uint8"

    @property
    def settings(self) -> dict[str, Any]:
        """What the values depend on beside block, reduction and type, as JSON."""
        found: dict[str, Any] = {"grid": self.grid}
        if self.components is not None:
            found["components"] = self.components
        if self.dictionary is not None:
            found["dictionary"] = self.dictionary.model_dump(mode="json")
        if self.is_fitted:
            found["fit_share"] = self.fit_share
        return found

    @property
    def parts(self) -> dict[str, Any]:
        """What of it belongs to a store's fingerprint."""
        return {"block": self.block, "reduce": self.reduce, "dtype": self.dtype, **self.settings}
