"""What `inspect_store` finds, as values.

In: the summary, its parts, and their JSON form. Left out: computing it (inspect.py,
shard_figures.py), printing it (flows) and drawing it (pipeline.report).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class VerticalSummary:
    """One vertical of the hard labels, over all labels.

    Attributes:
        vertical: Its name.
        rows: Rows of the manifest in use in the store's split.
        labels: Soft labels of such rows, per view.
        compared: Labels, all views, of rows whose hard label is a class of the teacher.
        agreed: Of those, labels whose first rank is the hard label.
    """

    vertical: str
    rows: int
    labels: tuple[int, ...]
    compared: int
    agreed: int


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """A hard label and the other class that the teacher puts first.

    Attributes:
        hard: Qualified name of the hard label.
        first: Qualified name of the first rank.
        labels: How many labels.
    """

    hard: str
    first: str
    labels: int


@dataclass(frozen=True, kw_only=True)
class Disagreement:
    """A row whose teacher disagrees with its hard label: maybe a wrong label.

    Attributes:
        row: Of the manifest.
        view: In which the disagreement is largest, among the sampled ones.
        key: What the source calls the sample; "" when unknown.
        hard: Qualified name of the hard label.
        first: Qualified name of the first rank.
        first_probability: Of the first rank.
        hard_probability: Of the hard label; its share of the tail when it is outside the top K.
    """

    row: int
    view: int
    key: str
    hard: str
    first: str
    first_probability: float
    hard_probability: float


@dataclass(frozen=True, kw_only=True)
class StoreSummary:
    """What a store holds.

    Figures over all labels come from `ids`, whose crc32c are checked. Entropy, tail mass, symbols
    and disagreements come from `sampled` labels, at the first declared temperature.

    Attributes:
        path: Directory of the store.
        teacher: Name of the specialist.
        fingerprint: Name of the store.
        split: Of the manifest.
        num_rows: N.
        num_views: V.
        k: K.
        num_classes: C_t.
        activation: softmax or sigmoid.
        selection: top_k, top_p or sampled.
        top_p: Mass that top_p keeps; None otherwise.
        precision: compact or exact.
        temperatures: At which labels can be decoded.
        temperature: At which the sampled figures were computed.
        labels_per_view: Labels in committed shards that can be read, per view.
        labels: Their sum.
        retired_labels: Of those, of rows that are retired since; None without hard labels.
        coverage: Per view, share of the store's rows that are labelled.
        shards: Shards per view.
        shards_committed: Committed shards, all views.
        size_bytes: Size of all files.
        bytes_per_label: `size_bytes` over `labels`; 0 when there is none.
        classes: Names of the teacher's classes.
        class_counts: Labels of which each class is the first rank.
        top_classes: The most frequent first-rank classes, (name, labels).
        verticals: By vertical of the hard labels; empty without hard labels.
        compared: Labels of rows whose hard label is a class of the teacher.
        agreement: Share of those whose first rank is the hard label; None without any.
        confused: Most frequent pairs of hard label and another first rank.
        confused_missing: How many labels each pair may have more than it says; 0 is exact.
        hard_labels_problem: Why there are no hard labels; None when there are.
        sampled: Labels that were decoded.
        entropy_mean: In nats.
        entropy_percentiles: (percentile, nats) pairs.
        entropy_edges: Edges of the histogram's bins, in nats.
        entropy_counts: Labels per bin.
        tail_mean: Mean mass outside the stored classes.
        tail_edges: Edges of the histogram's bins, log10 of the tail mass.
        tail_counts: Labels per bin, the first also with what is smaller; empty without tails.
        ids_bytes: Bytes a label of the files of `ids`.
        gaps_bytes: Bytes a label of the files of `gaps`.
        ids_bound_bytes: Zeroth-order entropy of the symbols of `ids`, summed over the columns.
        gaps_bound_bytes: The same of `gaps`.
        disagreements: Rows on which teacher and hard label disagree hardest, hardest first.
        problems: From quick verification and from what was read; empty means none was met.
    """

    path: str
    teacher: str
    fingerprint: str
    split: str
    num_rows: int
    num_views: int
    k: int
    num_classes: int
    activation: str
    selection: str
    top_p: float | None
    precision: str
    temperatures: tuple[float, ...]
    temperature: float
    labels_per_view: tuple[int, ...]
    labels: int
    retired_labels: int | None
    coverage: tuple[float, ...]
    shards: int
    shards_committed: int
    size_bytes: int
    bytes_per_label: float
    classes: tuple[str, ...]
    class_counts: tuple[int, ...]
    top_classes: tuple[tuple[str, int], ...]
    verticals: tuple[VerticalSummary, ...]
    compared: int
    agreement: float | None
    confused: tuple[Confusion, ...]
    confused_missing: int
    hard_labels_problem: str | None
    sampled: int
    entropy_mean: float
    entropy_percentiles: tuple[tuple[int, float], ...]
    entropy_edges: tuple[float, ...]
    entropy_counts: tuple[int, ...]
    tail_mean: float
    tail_edges: tuple[float, ...]
    tail_counts: tuple[int, ...]
    ids_bytes: float
    gaps_bytes: float
    ids_bound_bytes: float
    gaps_bound_bytes: float
    disagreements: tuple[Disagreement, ...]
    problems: tuple[str, ...]

    @property
    def is_healthy(self) -> bool:
        """Whether no damage was met."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return dataclasses.asdict(self)
