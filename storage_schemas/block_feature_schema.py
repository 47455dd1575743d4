"""The block-feature store, version 1: what its attributes say.

In: `FeatureArray`, one tapped block of a teacher after a declared reduction, and
`BlockFeatureSchema`, all of them. Left out: the code of the values (block_features.py, which
re-exports the schema), the reductions themselves (pipeline.teachers.reductions) and every byte on
disk (pipeline.store). README.md beside this file is the written specification.

A reader needs to know no reduction: the type, and the range of an array of uint8, say how values
are decoded. So a new reduction is no new version.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from storage_schemas.fingerprint import fingerprint
from storage_schemas.soft_label_schema import Count, dict_problems
from storage_schemas.stored_array import StoredArray, read_attributes

BLOCK_FEATURE_FORMAT = "concentrate.block_features"
BLOCK_FEATURE_VERSION = 1
LARGEST_CODE = 254  # of uint8; 255 is fill
LARGEST_NUMBER = 65_534  # of uint16; 65535 is fill
RANGE = "range"
_PART = r"[A-Za-z0-9_]+"
_FILL = {"float16": float("nan"), "uint8": LARGEST_CODE + 1, "uint16": LARGEST_NUMBER + 1}


class FittedArray(BaseModel):
    """A constant of a reduction, fitted before the first shard was written.

    Attributes:
        shape: Of its float64 values.
        digest: See `fitted_digest`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    shape: tuple[Count, ...]
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")


class FeatureArray(BaseModel):
    """What one tapped block is stored as.

    Attributes:
        block: Name of the module in the teacher's network.
        reduce: Name of the reduction.
        settings: Further settings of the reduction, as JSON.
        channels: Channels after the reduction.
        height: Of the stored grid.
        width: Of the stored grid.
        dtype: float16, uint8 with a range for each channel, or uint16 for whole numbers that are
            stored as they are, e.g. ids.
        fitted: Constants that were fitted when the store was made, by name: those of the
            reduction, and the range of uint8.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    block: str = Field(pattern=rf"^{_PART}(\.{_PART})*$", max_length=200)
    reduce: str = Field(pattern=r"^[a-z][a-z_]*$", max_length=40)
    settings: dict[str, Any] = Field(default_factory=dict)
    channels: Count
    height: Count
    width: Count
    dtype: Literal["float16", "uint8", "uint16"] = "float16"
    fitted: dict[Annotated[str, Field(pattern=r"^[a-z]+$")], FittedArray] = Field(
        default_factory=dict
    )

    @model_validator(mode="after")
    def _uint8_has_a_range(self) -> FeatureArray:
        wanted = (2, self.channels) if self.dtype == "uint8" else None
        found = self.fitted[RANGE].shape if RANGE in self.fitted else None
        if found != wanted:
            raise ValueError(
                f"fitted.{RANGE} of {self.dtype} must have shape {wanted}, got {found}"
            )
        return self

    @property
    def name(self) -> str:
        """Name of the array: the block with its dots as "_", and the reduction."""
        return f"{self.block.replace('.', '_')}.{self.reduce}"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one row in one view."""
        return self.channels, self.height, self.width

    @property
    def stored(self) -> StoredArray:
        """How its values lie in the store."""
        return StoredArray(
            name=self.name,
            dtype=np.dtype(self.dtype),
            fill=_FILL[self.dtype],
            cell=self.shape,
            dimensions=("channel", "height", "width"),
        )


class BlockFeatureSchema(BaseModel):
    """Everything that a reader must know about one block-feature store.

    Attributes:
        version: Version of the format.
        teacher: Name of the teacher.
        num_rows: N, rows of the manifest that the store has room for.
        num_views: V.
        shard_rows: Rows of one shard, the unit that is written and committed.
        chunk_rows: Rows of one compressed chunk inside a shard.
        arrays: The tapped blocks; the order is that of the checksums in a commit record.
        fit_rows: (row, view) pairs from which constants were fitted, 0 where there are none.
        manifest_chain: Chain digest of the manifest when the store was made.
        manifest_rows: Rows of the manifest when the store was made.
        split: Name of the split.
        recipe: The view recipe, as JSON.
        fingerprint_parts: What the store's name is a digest of, as JSON.
        grown_at: `num_rows` before each growth.
        library_versions: Versions of the libraries that wrote it.
        created: ISO 8601 time.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    kind: ClassVar[str] = "block_features"
    noun: ClassVar[str] = "block-feature store"
    own_version: ClassVar[int] = BLOCK_FEATURE_VERSION

    version: Literal[1] = 1
    teacher: str = Field(min_length=1)
    num_rows: int = Field(ge=0, lt=2**63)
    num_views: Count
    shard_rows: Count
    chunk_rows: Count
    arrays: tuple[FeatureArray, ...] = Field(min_length=1)
    fit_rows: int = Field(0, ge=0)
    manifest_chain: str = ""
    manifest_rows: int = Field(0, ge=0)
    split: int | str = "train"
    recipe: dict[str, Any] = Field(default_factory=dict)
    fingerprint_parts: dict[str, Any] = Field(default_factory=dict)
    grown_at: tuple[int, ...] = ()
    library_versions: dict[str, str] = Field(default_factory=dict)
    created: str = ""

    @model_validator(mode="after")
    def _fields_fit_together(self) -> BlockFeatureSchema:
        names = [array.name for array in self.arrays]
        doubles = sorted({name for name in names if names.count(name) > 1})
        if doubles:
            raise ValueError(f"arrays must have different names, got {doubles} more than once")
        if not self.teacher.isprintable():
            raise ValueError(f"teacher must hold printable characters only, got {self.teacher!r}")
        if self.shard_rows % self.chunk_rows:
            raise ValueError(
                f"shard_rows must be a multiple of chunk_rows ({self.chunk_rows}), got "
                f"{self.shard_rows}"
            )
        return self

    @property
    def fingerprint(self) -> str:
        """Digest of `fingerprint_parts`, 16 hex digits; the store's name."""
        return fingerprint(self.fingerprint_parts)

    @property
    def num_shards(self) -> int:
        """Shards along the rows."""
        return -(-self.num_rows // self.shard_rows)

    @property
    def stored_arrays(self) -> tuple[StoredArray, ...]:
        """The arrays of a shard, in the order of their checksums in a commit record."""
        return tuple(array.stored for array in self.arrays)

    @property
    def fitted_arrays(self) -> dict[str, FittedArray]:
        """The constants of all arrays by their place in the store, `<constant>/<array>`."""
        return {
            f"{constant}/{array.name}": fitted
            for array in self.arrays
            for constant, fitted in array.fitted.items()
        }

    @property
    def fitted_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of these constants."""
        return {place: fitted.shape for place, fitted in self.fitted_arrays.items()}

    @property
    def row_bytes(self) -> int:
        """Bytes of all arrays of one (row, view) pair before compression."""
        return sum(array.row_bytes for array in self.stored_arrays)

    def array(self, name: str) -> FeatureArray:
        """Return one array by name; KeyError where there is none."""
        return {array.name: array for array in self.arrays}[name]

    def to_attributes(self) -> dict[str, Any]:
        """Return the JSON form; `from_attributes` is its inverse."""
        return {
            "format": BLOCK_FEATURE_FORMAT,
            **self.model_dump(mode="json"),
            "fingerprint": self.fingerprint,
        }

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any], subject: str) -> BlockFeatureSchema:
        """Read the JSON form.

        Raises:
            SchemaMismatchError: If they are of another format or version, or do not fit
                together; lists every field at fault.
        """
        return read_attributes(
            cls,
            attributes,
            subject,
            name=BLOCK_FEATURE_FORMAT,
            version=BLOCK_FEATURE_VERSION,
            derived=("fingerprint",),
        )

    def validate(self, found: BlockFeatureSchema) -> list[str]:  # type: ignore[override]
        """Return one sentence per field in which another store differs in meaning.

        Rows grow and the layout is free. What was fitted is the other store's own, since nothing
        is fitted twice.
        """
        names = ["version", "teacher", "num_views", "split"]
        if self.manifest_rows == found.manifest_rows:
            names.append("manifest_chain")
        problems = [
            f"{name} must be {getattr(self, name)!r}, got {getattr(found, name)!r}"
            for name in names
            if getattr(self, name) != getattr(found, name)
        ]
        mine, others = (
            {array.name: array.model_dump(mode="json", exclude={"fitted"}) for array in one.arrays}
            for one in (self, found)
        )
        problems += dict_problems("array", mine, others)
        problems += dict_problems("recipe", self.recipe, found.recipe)
        problems += dict_problems(
            "fingerprint_parts", self.fingerprint_parts, found.fingerprint_parts
        )
        return problems


def fitted_digest(values: npt.NDArray[np.float64]) -> str:
    """Return the sha256 hex digest of the shape, as ASCII, and the little-endian values."""
    shape = ",".join(str(size) for size in values.shape)
    content = np.ascontiguousarray(values, "<f8").tobytes()
    return hashlib.sha256(f"{shape}/".encode() + content).hexdigest()
