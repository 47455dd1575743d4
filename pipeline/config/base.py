"""What all settings share, and what those of every objective tell the rest of the pipeline."""

from __future__ import annotations

import abc
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator

from pipeline.locations import location
from storage_schemas.errors import ConfigError


def _location(value: Any) -> Path:
    if not isinstance(value, str | Path):
        raise ValueError(f"must be a path of this machine, or s3://bucket/prefix, got {value!r}")  # noqa: TRY004
    try:
        return location(value)
    except ConfigError as error:
        raise ValueError(f"{error.subject!r} {'; '.join(error.problems)}") from None


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Location = Annotated[Path, PlainValidator(_location), PlainSerializer(str)]
"""A folder of this machine, or a prefix of a bucket: see `pipeline.locations`."""
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveInt = Annotated[int, Field(ge=1)]


class Settings(BaseModel):
    """Base of all models: frozen, and an unknown key is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )


class ObjectiveSettings(Settings, abc.ABC):
    """Settings of an objective; whoever trains or checks one asks for these, and for no field.

    None of them is dumped, so that they are not part of a run's fingerprint.

    Attributes:
        hides_labels: The student is not told the hard labels, though the images have some.
        by_rows: Its terms are means over rows, each of which its own logits and targets decide.
    """

    hides_labels: ClassVar[bool] = False
    by_rows: ClassVar[bool] = False

    @property
    @abc.abstractmethod
    def reads(self) -> frozenset[str]:
        """Stores that a run opens: `soft` labels, block `features`, or none."""

    @property
    def label_temperature(self) -> float:
        """At which stored soft labels are read."""
        return 1.0

    @property
    def activation(self) -> Literal["softmax", "sigmoid"]:
        """What makes probabilities of the student's logits."""
        return "softmax"
