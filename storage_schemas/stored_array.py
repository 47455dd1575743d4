"""What all stores have in common: arrays over (view, row), written and committed shard by shard.

In: `StoredArray`, one such array, `StoreSchema`, what a store's schema must tell those who write,
read and verify its bytes, and reading a schema's JSON form. Left out: what the numbers mean
(soft_labels.py, block_features.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ValidationError

from storage_schemas.errors import SchemaMismatchError

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True, kw_only=True)
class StoredArray:
    """One array of values of (view, row) pairs.

    Attributes:
        name: Its folder in the store.
        dtype: Of its values.
        fill: The value that means absent; NaN in an array of floats.
        cell: Shape of the values of one pair.
        dimensions: Names of the axes of a cell.
    """

    name: str
    dtype: np.dtype[Any]
    fill: float
    cell: tuple[int, ...]
    dimensions: tuple[str, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes of one pair before compression."""
        return math.prod(self.cell) * self.dtype.itemsize

    def empty(self, *shape: int) -> npt.NDArray[Any]:
        """Return (*shape, *cell) of fill."""
        return np.full((*shape, *self.cell), self.fill, self.dtype)

    def is_fill(self, values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Return which values are fill."""
        found: npt.NDArray[np.bool_] = (
            np.isnan(values) if math.isnan(self.fill) else values == self.fill
        )
        return found

    def absent(self, values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Return which pairs of (*shape, *cell) are not written, as their first value tells."""
        first: tuple[Any, ...] = (..., *(0 for _ in self.cell))
        return self.is_fill(values[first])


class StoreSchema(Protocol):
    """What those who handle a store's bytes must know of it.

    Attributes:
        kind: Name of the attribute that holds the schema.
        noun: What a person calls such a store.
        own_version: The version of the format that this release writes.
    """

    kind: ClassVar[str]
    noun: ClassVar[str]
    own_version: ClassVar[int]

    @property
    def teacher(self) -> str: ...  # noqa: D102
    @property
    def split(self) -> int | str: ...  # noqa: D102
    @property
    def num_rows(self) -> int: ...  # noqa: D102
    @property
    def num_views(self) -> int: ...  # noqa: D102
    @property
    def num_shards(self) -> int: ...  # noqa: D102
    @property
    def shard_rows(self) -> int: ...  # noqa: D102
    @property
    def chunk_rows(self) -> int: ...  # noqa: D102
    @property
    def grown_at(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def fingerprint(self) -> str: ...  # noqa: D102

    @property
    def stored_arrays(self) -> tuple[StoredArray, ...]:
        """The arrays of a shard, in the order of their checksums in a commit record."""

    @property
    def fitted_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes of the constant arrays that were fitted when the store was made, by name."""

    def to_attributes(self) -> dict[str, Any]:
        """Return the JSON form."""


def read_attributes(
    model: type[Model],
    attributes: Mapping[str, Any],
    subject: str,
    *,
    name: str,
    version: int,
    derived: tuple[str, ...],
) -> Model:
    """Read the JSON form of a schema.

    Args:
        model: Of the schema.
        attributes: What its `to_attributes` returned.
        subject: Where they were found; starts the error message.
        name: What `format` must be.
        version: What `version` must be.
        derived: Names of further members, which must equal what the other fields give.

    Raises:
        SchemaMismatchError: If they are of another format or version, or do not fit together;
            lists every field at fault.
    """
    problems: list[str] = []
    without = ("format", *derived)
    found_format, found_version = attributes.get("format"), attributes.get("version")
    if found_format != name:
        problems.append(f"format must be {name!r}, got {found_format!r}")
    if found_version != version:
        newer = isinstance(found_version, int) and found_version > version
        hint = "; it was written by a newer release, upgrade to read it" if newer else ""
        problems.append(f"version must be {version}, got {found_version!r}{hint}")
    try:
        schema = model.model_validate(
            {key: value for key, value in attributes.items() if key not in without}
        )
    except ValidationError as error:
        for detail in error.errors():
            where = ".".join(str(part) for part in detail["loc"])
            if where != "version":
                problems.append(_sentence(where, detail["type"], detail["msg"], version))
        raise SchemaMismatchError(subject, problems) from None
    for key in derived:
        expected = getattr(schema, key)
        if attributes.get(key) != expected:
            problems.append(f"{key} must be {expected!r}, got {attributes.get(key)!r}")
    if problems:
        raise SchemaMismatchError(subject, problems)
    return schema


def _sentence(where: str, kind: str, message: str, version: int) -> str:
    if kind == "extra_forbidden":
        return f"{where} is not a field of version {version}"
    if kind == "missing":
        return f"{where} must be there, got nothing"
    return f"{where}: {message}" if where else message.removeprefix("Value error, ")
