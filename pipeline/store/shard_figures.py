"""The figures of some shards, as sums that can be merged.

In: what `inspect_store` computes of one shard, exactly from `ids` and from the sampled rows of
`gaps`, and the merge. Left out: which rows are sampled, and what the sums mean (inspect.py).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.store.hard_labels import HardLabels
from pipeline.store.label_sample import LabelSample, merge_samples, sample_labels
from pipeline.store.layout import shard_file
from pipeline.store.pair_counts import PairCounts, count_pairs, merge_pairs
from pipeline.store.shards import Array
from pipeline.store.soft_label_store import SoftLabelStore
from pipeline.store.verify import shard_problems
from storage_schemas.errors import CorruptLabelError

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Place:
    """One shard of one view.

    Attributes:
        view: Its view.
        shard: Index along the rows.
        record: Its commit record; zeros where it is not done, or the record cannot be read.
        sampled: Spans of rows to decode, counted from the shard's first row.
    """

    view: int
    shard: int
    record: tuple[int, int, int]
    sampled: tuple[range, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class ShardFigures:
    """Sums over shards.

    Attributes:
        labels: (V,) labels by view.
        classes: (C_t,) labels by first rank.
        retired: Labels of retired rows.
        by_vertical: (V, verticals, 3) labels of rows in use, of which compared with a hard label,
            of which agreed; no verticals without hard labels.
        pairs: Hard label and another first rank.
        sample: Of the rows that were decoded.
        problems: One sentence each.
    """

    labels: Counts
    classes: Counts
    retired: int
    by_vertical: Counts
    pairs: PairCounts
    sample: LabelSample | None
    problems: tuple[str, ...]


def no_figures(
    store: SoftLabelStore, hard: HardLabels | None, problems: Sequence[str] = ()
) -> ShardFigures:
    """Return the figures of no label."""
    schema = store.schema
    verticals = len(hard.verticals) if hard is not None else 0
    nothing = np.zeros(0, np.int64)
    return ShardFigures(
        labels=np.zeros(schema.num_views, np.int64),
        classes=np.zeros(schema.num_classes, np.int64),
        retired=0,
        by_vertical=np.zeros((schema.num_views, verticals, 3), np.int64),
        pairs=PairCounts(codes=nothing, counts=nothing),
        sample=None,
        problems=tuple(problems),
    )


def reduce_places(
    places: Sequence[Place], store: SoftLabelStore, hard: HardLabels | None
) -> ShardFigures:
    """Return the figures of some shards, read one after the other."""
    found = (_figures(place, store, hard) for place in places)
    return functools.reduce(lambda total, part: merge_figures([total, part]), found)


def _figures(place: Place, store: SoftLabelStore, hard: HardLabels | None) -> ShardFigures:
    # What is wrong with a file of ids shows when it is read.
    file = shard_file(store.path, "gaps", place.view, place.shard)
    if place.record[0] == 0 or not (file.is_file() and file.stat().st_size):
        problems = shard_problems(store, place.view, place.shard, "quick")
        return no_figures(store, hard, problems)
    try:
        return _read_figures(place, store, hard)
    except CorruptLabelError as error:
        return no_figures(store, hard, [str(error)])


def _read_figures(place: Place, store: SoftLabelStore, hard: HardLabels | None) -> ShardFigures:
    schema, view = store.schema, place.view
    span = store.shard_span(place.shard)
    gaps: Array | None = None
    if place.sampled == (range(len(span)),):
        # Read whole, so that both crc32c of the record are checked.
        ids, gaps = store.read_shard(view, place.shard)
    else:
        ids = store.read_shard_ids(view, place.shard, place.record[1])
    first = np.ascontiguousarray(ids[:, 0])
    labelled = first != schema.ids_fill
    whole = bool(labelled.all())
    classes = np.bincount(first if whole else first[labelled], minlength=schema.num_classes)
    where = f"ids, view {view}, shard {place.shard}"
    if len(classes) > schema.num_classes:
        return no_figures(store, hard, [f"{where}: an id is not below {schema.num_classes}"])
    if classes.sum() != place.record[0]:
        problem = f"{where}: {place.record[0]} labels by its record, got {classes.sum()}"
        return no_figures(store, hard, [problem])
    labels = np.zeros(schema.num_views, np.int64)
    labels[view] = classes.sum()
    by_vertical, pairs, retired = _compared(store, span, view, first, labelled, hard)
    sample: LabelSample | None = None
    for rows in place.sampled:
        here = slice(rows.start, rows.stop)
        part = store.read_shard_gaps(view, place.shard, rows) if gaps is None else gaps[here]
        found = sample_labels(
            schema,
            view=view,
            rows=np.arange(span.start + rows.start, span.start + rows.stop),
            ids=ids[here],
            gaps=part,
            hard=hard,
        )
        sample = merge_samples([sample, found])
    return ShardFigures(
        labels=labels,
        classes=classes,
        retired=retired,
        by_vertical=by_vertical,
        pairs=pairs,
        sample=sample,
        problems=(),
    )


def _compared(
    store: SoftLabelStore,
    span: range,
    view: int,
    first: Array,
    labelled: npt.NDArray[np.bool_],
    hard: HardLabels | None,
) -> tuple[Counts, PairCounts, int]:
    nothing = no_figures(store, hard)
    if hard is None:
        return nothing.by_vertical, nothing.pairs, 0
    here = slice(span.start, span.stop)
    local = hard.local[here]
    counted = labelled & hard.used[here]
    compared = counted & (local >= 0)
    agreed = compared & (local == first)
    # Each state holds the one before it, so that one count of vertical and state has all three.
    state = counted.view(np.uint8) + compared.view(np.uint8) + agreed.view(np.uint8)
    codes = 4 * hard.vertical[here].astype(np.int64) + state
    by_state = np.bincount(codes, minlength=4 * len(hard.verticals)).reshape(-1, 4)
    nothing.by_vertical[view] = by_state[:, ::-1].cumsum(axis=1)[:, 2::-1]
    wrong = np.flatnonzero(compared & ~agreed)
    pairs = count_pairs(local[wrong], first[wrong], store.schema.num_classes)
    return nothing.by_vertical, pairs, int(np.count_nonzero(labelled & hard.retired[here]))


def merge_figures(parts: Sequence[ShardFigures]) -> ShardFigures:
    """Return the figures of all parts together."""
    return ShardFigures(
        labels=functools.reduce(np.add, [part.labels for part in parts]),
        classes=functools.reduce(np.add, [part.classes for part in parts]),
        retired=sum(part.retired for part in parts),
        by_vertical=functools.reduce(np.add, [part.by_vertical for part in parts]),
        pairs=merge_pairs([part.pairs for part in parts]),
        sample=merge_samples([part.sample for part in parts if part.sample is not None]),
        problems=tuple(problem for part in parts for problem in part.problems),
    )
