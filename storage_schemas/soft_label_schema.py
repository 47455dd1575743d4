"""The soft-label store, version 1: what its attributes say.

In: `SoftLabelSchema`, its JSON form, and the comparison of two schemas. Left out: what the
quantised numbers mean (soft_labels.py, which re-exports the schema) and every byte on disk
(pipeline.store). The written specification is README.md beside this file.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from storage_schemas.errors import SchemaMismatchError
from storage_schemas.fingerprint import fingerprint
from storage_schemas.label_space import LabelMap, LabelSpace
from storage_schemas.selection import Selection, selection_problems
from storage_schemas.stored_array import StoredArray, read_attributes

SOFT_LABEL_FORMAT = "concentrate.soft_labels"
SOFT_LABEL_VERSION = 1
LARGEST_UINT16_CLASSES = 65_535
# Younger than version 1: left out where they say nothing new, so that older readers open the rest.
_DEFAULTS = {"selection": "top_k", "top_p": None}

Count = Annotated[int, Field(ge=1, lt=2**32)]
Temperature = Annotated[float, Field(ge=1e-3, le=1e3)]  # beyond, float32 has no use for it


class SoftLabelSchema(BaseModel):
    """Everything that a reader must know about one soft-label store.

    Attributes:
        version: Version of the format.
        teacher: Name of the specialist.
        num_rows: N, rows of the manifest that the store has room for.
        num_views: V.
        k: K, ranks that are kept at most; at most `num_classes`, unless sampled: then K draws.
        num_classes: C_t, classes of the teacher.
        activation: softmax, or sigmoid for independent classes.
        selection: Which classes are kept. top_k: the K most probable. top_p: the fewest of them
            whose mass at the first temperature reaches `top_p`. sampled: those of K draws.
        top_p: The mass of top_p; None otherwise.
        temperatures: At which labels can be decoded.
        precision: compact (8 bits a gap) or exact (16 bits a gap).
        shard_rows: Rows of one shard, the unit that is written and committed.
        chunk_rows: Rows of one compressed chunk inside a shard.
        classes: Qualified name of each teacher-local class; position = local id.
        global_ids: Global id of each local class when the store was made.
        label_space_digest: Digest of the label space when the store was made.
        manifest_chain: Chain digest of the manifest when the store was made.
        manifest_rows: Rows of the manifest when the store was made.
        split: Name or number of the labelled split.
        recipe: The view recipe, as JSON.
        fingerprint_parts: What the store's name is a digest of, as JSON.
        grown_at: `num_rows` before each growth.
        library_versions: Versions of the libraries that wrote it.
        created: ISO 8601 time.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    kind: ClassVar[str] = "soft_labels"
    noun: ClassVar[str] = "soft-label store"
    own_version: ClassVar[int] = SOFT_LABEL_VERSION
    fitted_shapes: ClassVar[Mapping[str, tuple[int, ...]]] = {}

    version: Literal[1] = 1
    teacher: str = Field(min_length=1)
    num_rows: int = Field(ge=0, lt=2**63)
    num_views: Count
    k: Count
    num_classes: int = Field(ge=1, lt=2**32 - 1)
    activation: Literal["softmax", "sigmoid"] = "softmax"
    selection: Selection = "top_k"
    top_p: float | None = Field(None, gt=0, le=1)
    temperatures: tuple[Temperature, ...] = Field((1.0,), min_length=1)
    precision: Literal["compact", "exact"] = "compact"
    shard_rows: Count
    chunk_rows: Count
    classes: tuple[str, ...]
    global_ids: tuple[Annotated[int, Field(ge=0)], ...]
    label_space_digest: str = ""
    manifest_chain: str = ""
    manifest_rows: int = Field(0, ge=0)
    split: int | str = "train"
    recipe: dict[str, Any] = Field(default_factory=dict)
    fingerprint_parts: dict[str, Any] = Field(default_factory=dict)
    grown_at: tuple[int, ...] = ()
    library_versions: dict[str, str] = Field(default_factory=dict)
    created: str = ""

    @model_validator(mode="after")
    def _fields_fit_together(self) -> SoftLabelSchema:
        if self.k > self.num_classes and self.selection != "sampled":
            raise ValueError(f"k must be at most num_classes ({self.num_classes}), got {self.k}")
        problems = selection_problems(self)
        if problems:
            raise ValueError("; ".join(problems))
        for name, values in (("classes", self.classes), ("global_ids", self.global_ids)):
            if len(values) != self.num_classes or len(set(values)) != len(values):
                raise ValueError(
                    f"{name} must be {self.num_classes} different values, got {len(values)} of "
                    f"which {len(set(values))} differ"
                )
        hidden = [name for name in (self.teacher, *self.classes) if not name.isprintable()]
        if hidden:
            raise ValueError(
                f"teacher and classes must hold printable characters only, got {hidden[0]!r:.200}"
            )
        if len(set(self.temperatures)) != len(self.temperatures):
            raise ValueError(f"temperatures must differ, got {list(self.temperatures)}")
        if self.shard_rows % self.chunk_rows:
            raise ValueError(
                f"shard_rows must be a multiple of chunk_rows ({self.chunk_rows}), got "
                f"{self.shard_rows}"
            )
        return self

    # --- derived ----------------------------------------------------------------------------

    @property
    def fingerprint(self) -> str:
        """Digest of `fingerprint_parts`, 16 hex digits; the store's name."""
        return fingerprint(self.fingerprint_parts)

    @property
    def num_shards(self) -> int:
        """Shards along the rows."""
        return -(-self.num_rows // self.shard_rows)

    @property
    def columns(self) -> int:
        """Columns of `gaps`: K - 1 gaps and a tail per temperature, or the top logit; K counts."""
        if self.selection == "sampled":
            return self.k
        return self.k - 1 + (1 if self.activation == "sigmoid" else len(self.temperatures))

    @property
    def label_bytes(self) -> int:
        """Bytes of one label before compression."""
        return self.k * self.ids_dtype.itemsize + self.columns * self.gaps_dtype.itemsize

    @property
    def ids_dtype(self) -> np.dtype[np.uint16] | np.dtype[np.uint32]:
        """Type of `ids`; its maximum means not labelled."""
        small = self.num_classes <= LARGEST_UINT16_CLASSES
        return np.dtype(np.uint16) if small else np.dtype(np.uint32)

    @property
    def gaps_dtype(self) -> np.dtype[np.uint8] | np.dtype[np.uint16]:
        """Type of `gaps`; its maximum means not labelled."""
        return np.dtype(np.uint8) if self.precision == "compact" else np.dtype(np.uint16)

    @property
    def ids_fill(self) -> int:
        """The id that means not labelled."""
        return int(np.iinfo(self.ids_dtype).max)

    @property
    def gaps_fill(self) -> int:
        """The gap that means not labelled."""
        return int(np.iinfo(self.gaps_dtype).max)

    @property
    def stored_arrays(self) -> tuple[StoredArray, ...]:
        """The arrays of a shard, in the order of their checksums in a commit record."""
        return (
            StoredArray(
                name="ids",
                dtype=self.ids_dtype,
                fill=self.ids_fill,
                cell=(self.k,),
                dimensions=("rank",),
            ),
            StoredArray(
                name="gaps",
                dtype=self.gaps_dtype,
                fill=self.gaps_fill,
                cell=(self.columns,),
                dimensions=("column",),
            ),
        )

    @property
    def encoding(self) -> dict[str, float]:
        """Steps and offsets of the quantisation, in nats; under sampled, the number of draws."""
        if self.selection == "sampled":
            return {"draws": float(self.k)}
        compact = self.precision == "compact"
        gap_step = 1 / 16 if compact else 1 / 2048
        if self.activation == "sigmoid":
            return {"gap_step": gap_step, "top_offset": 8.0 if compact else 16.0}
        fewest = self.k if self.selection == "top_k" else 1
        outside = max(self.num_classes - fewest, 1)
        return {
            "gap_step": gap_step,
            "tail_step": 1 / 8 if compact else gap_step,
            "tail_offset": float(math.ceil(math.log(outside))),
        }

    @property
    def label_map(self) -> LabelMap:
        """The class map as it was when the store was made."""
        return LabelMap(names=self.classes, global_ids=np.array(self.global_ids, np.int64))

    def resolve(self, space: LabelSpace) -> LabelMap:
        """Return the class map into a label space; classes bind by name.

        Raises:
            LabelSpaceError: Names every class that the space lacks.
        """
        return LabelMap.from_names(space, self.classes, owner=f"soft labels of {self.teacher!r}")

    def empty(self, *shape: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Return ids (*shape, K) and gaps (*shape, columns) that say not labelled."""
        ids = np.full((*shape, self.k), self.ids_fill, self.ids_dtype)
        return ids, np.full((*shape, self.columns), self.gaps_fill, self.gaps_dtype)

    def temperature_index(self, temperature: float) -> int:
        """Return the position of a declared temperature.

        Raises:
            SchemaMismatchError: If it was not declared.
        """
        if temperature not in self.temperatures:
            raise SchemaMismatchError(
                f"soft labels of {self.teacher!r}",
                [
                    f"temperature must be one of {list(self.temperatures)}, got {temperature}; "
                    "add it to labels.temperatures and label again"
                ],
            )
        return self.temperatures.index(temperature)

    # --- JSON -------------------------------------------------------------------------------

    def to_attributes(self) -> dict[str, Any]:
        """Return the JSON form; `from_attributes` is its inverse."""
        fields = self.model_dump(mode="json")
        return {
            "format": SOFT_LABEL_FORMAT,
            **{k: v for k, v in fields.items() if k not in _DEFAULTS or v != _DEFAULTS[k]},
            "fingerprint": self.fingerprint,
            "encoding": self.encoding,
        }

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any], subject: str) -> SoftLabelSchema:
        """Read the JSON form.

        Args:
            attributes: What `to_attributes` returned.
            subject: Where they were found; starts the error message.

        Raises:
            SchemaMismatchError: If they are of another format or version, or do not fit
                together; lists every field at fault.
        """
        return read_attributes(
            cls,
            attributes,
            subject,
            name=SOFT_LABEL_FORMAT,
            version=SOFT_LABEL_VERSION,
            derived=("fingerprint", "encoding"),
        )

    # --- comparison -------------------------------------------------------------------------

    def validate(self, found: SoftLabelSchema) -> list[str]:  # type: ignore[override]
        """Return one sentence per field in which another store differs in meaning.

        The number of rows may differ, since rows grow; so may the layout, the library versions,
        and everything that classes binding by name makes free.
        """
        names = ["version", "teacher", "num_views", "k", "num_classes", "activation"]
        names += ["selection", "top_p", "temperatures", "precision", "split"]
        if self.manifest_rows == found.manifest_rows:
            names.append("manifest_chain")
        problems = [
            f"{name} must be {getattr(self, name)!r}, got {getattr(found, name)!r}"
            for name in names
            if getattr(self, name) != getattr(found, name)
        ]
        problems += class_problems(self.classes, found.classes)
        problems += dict_problems("recipe", self.recipe, found.recipe)
        problems += dict_problems(
            "fingerprint_parts", self.fingerprint_parts, found.fingerprint_parts
        )
        return problems


def class_problems(mine: Sequence[str], other: Sequence[str]) -> list[str]:
    """Return a sentence that names the first of the classes that differ, if any."""
    differing = [
        f"{position} must be {one!r}, got {another!r}"
        for position, (one, another) in enumerate(itertools.zip_longest(mine, other))
        if one != another
    ]
    more = f" (and {len(differing) - 1} more)" if len(differing) > 1 else ""
    return [f"class {differing[0]}{more}"] if differing else []


def dict_problems(name: str, mine: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return one sentence per key in which two JSON objects differ."""
    return [
        f"{name}.{key} must be {mine.get(key)!r}, got {other.get(key)!r}"
        for key in sorted({*mine, *other})
        if mine.get(key) != other.get(key) or (key in mine) != (key in other)
    ]
