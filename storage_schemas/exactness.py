"""`Exactness`: what a teacher's labels lost against its dense answers, as a record.

In: the JSON form of the record that lies beside a teacher's stores. Left out: how the divergences
are computed (pipeline.numerics.exactness) and on which rows (pipeline.teachers.exactness).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from storage_schemas.selection import Selection

_Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Spread(_Record):
    """Mean and largest value over the rows of the sample."""

    mean: _Finite
    max: _Finite


class Lost(_Record):
    """Divergences in nats at one temperature; None where one is not finite.

    Attributes:
        temperature: Of both distributions.
        outside: Mass of the dense answer outside the kept classes; under sigmoid, the sum of
            their probabilities.
        truncation: By keeping some classes exactly, the rest as an even tail.
        quantisation: What the code adds to that, by precision; empty where there is no code.
        uniform, bucket, drop: In all, by what the tail is taken for (numerics.exactness).
    """

    temperature: float = Field(gt=0)
    outside: Spread
    truncation: Spread | None
    quantisation: dict[Literal["compact", "exact"], Spread]
    uniform: Spread | None
    bucket: Spread | None
    drop: Spread | None


class Exactness(_Record):
    """What one teacher's labels lost.

    Attributes:
        version: Of this record.
        fingerprint: Of the train store whose settings were measured.
        split: test, or train where there are no test rows of the teacher.
        rows: Labelled densely, in the evaluation view.
        activation, selection, precision: As in the store's schema.
        ranks: Mean number of classes that a label keeps.
        losses: One per declared temperature, in their order.
    """

    version: Literal[1] = 1
    fingerprint: str
    split: Literal["train", "test"]
    rows: int = Field(ge=1)
    activation: Literal["softmax", "sigmoid"]
    selection: Selection
    precision: Literal["compact", "exact"]
    ranks: _Finite
    losses: tuple[Lost, ...]
