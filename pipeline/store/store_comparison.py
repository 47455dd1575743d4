"""What `compare_stores` finds, as values.

In: the comparison, its parts, and their JSON form. Left out: computing it (compare.py) and printing
it (flows). "a" and "b" are the first and the second store throughout.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

FEWEST_LABELS = 10


@dataclass(frozen=True, kw_only=True)
class ViewAgreement:
    """One view: labels of a, of b, of both, and those of both whose first ranks are one class."""

    a: int
    b: int
    both: int
    agreed: int


@dataclass(frozen=True, kw_only=True)
class ClassAgreement:
    """A class that one of the stores puts first.

    Attributes:
        name: Qualified name.
        a: Labels of both stores in which a has it first.
        b: Labels of both stores in which b has it first.
        both: Labels in which both have it first.
    """

    name: str
    a: int
    b: int
    both: int


@dataclass(frozen=True, kw_only=True)
class PairDifference:
    """A first rank of a, another one of b, and in how many labels they meet."""

    a: str
    b: str
    labels: int


@dataclass(frozen=True, kw_only=True)
class RowDifference:
    """A row on which the stores differ much.

    Attributes:
        row: Of the manifest.
        view: In which they differ most, among the sampled ones.
        key: What the source calls the sample; "" when unknown.
        a: First rank of a.
        b: First rank of b.
        a_probability: Of the first rank of a, by a.
        b_probability: Of the first rank of b, by b.
        kl_ab: KL(a || b) in nats.
        kl_ba: KL(b || a) in nats.
    """

    row: int
    view: int
    key: str
    a: str
    b: str
    a_probability: float
    b_probability: float
    kl_ab: float
    kl_ba: float


@dataclass(frozen=True, kw_only=True)
class StoreComparison:
    """How two stores differ.

    Attributes:
        paths: Of both.
        teachers: Of both.
        differences: (field, value of a, value of b) of the schema, as text.
        classes: Classes that both have, only a, only b.
        views: By view that both have.
        labels: Labels that both have.
        agreement: Share of them whose first ranks are one class; None without any.
        lowest: Classes of lowest agreement, which is `both` over a + b - both, among those with at
            least `FEWEST_LABELS` such labels.
        pairs: Most frequent pairs of different first ranks.
        pairs_missing: How many labels each pair may have more than it says; 0 is exact.
        temperature: Of the divergences; None when there are none.
        kl_problem: Why there are no divergences.
        sampled: Labels whose divergence was computed.
        kl_ab: Mean KL(a || b) in nats over the shared classes (see label_divergence.py).
        kl_ba: Mean KL(b || a).
        rows: Rows that differ most, by the sum of both divergences, largest first.
        problems: Damage met while reading; labels that it hit are left out.
    """

    paths: tuple[str, str]
    teachers: tuple[str, str]
    differences: tuple[tuple[str, str, str], ...]
    classes: tuple[int, int, int]
    views: tuple[ViewAgreement, ...]
    labels: int
    agreement: float | None
    lowest: tuple[ClassAgreement, ...]
    pairs: tuple[PairDifference, ...]
    pairs_missing: int
    temperature: float | None
    kl_problem: str | None
    sampled: int
    kl_ab: float | None
    kl_ba: float | None
    rows: tuple[RowDifference, ...]
    problems: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return dataclasses.asdict(self)
