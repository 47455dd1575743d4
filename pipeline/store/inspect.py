"""What a store holds and how healthy it is, in one pass over its shards with Dask.

In: which rows are sampled, the pass, and what its sums mean. Left out: the sums themselves
(shard_figures.py, label_sample.py), printing (flows) and plots (pipeline.report).

`ids` is read whole and checked against its commit records: that is quick, and gives exact counts.
Decoding is 20 times slower, so that entropies and the like come from whole chunks at even
distances. The crc32c of `gaps` is checked for shards that are read whole, and by `verify` for all.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.data.hard_labels import load_keys
from pipeline.locations import folder_bytes
from pipeline.store.hard_labels import HardLabels, hard_labels_of
from pipeline.store.label_sample import (
    ENTROPY_BINS,
    TAIL_EDGES,
    LabelSample,
    counted_columns,
    largest_entropy,
)
from pipeline.store.opening import open_soft_labels
from pipeline.store.records import written_places
from pipeline.store.reduction import Progress, grouped, reduce_groups
from pipeline.store.shard_figures import (
    Place,
    ShardFigures,
    merge_figures,
    no_figures,
    reduce_places,
)
from pipeline.store.soft_label_store import SoftLabelStore
from pipeline.store.store_summary import Confusion, Disagreement, StoreSummary, VerticalSummary
from storage_schemas.soft_labels import SoftLabelSchema

SAMPLED_LABELS = 1_000_000
HISTOGRAM_BINS = 32
PERCENTILES = (5, 25, 50, 75, 95)
SHOWN = 20
# Fractions of it fall evenly into [0, 1), so that views do not sample the same rows.
GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


def inspect_store(
    path: Path,
    *,
    sampled_labels: int | None = SAMPLED_LABELS,
    address: str | None = None,
    progress: Progress | None = None,
) -> StoreSummary:
    """Read a store and summarise it; damaged shards are listed, not counted.

    Memory is bounded by the shards that the threads have open, whatever the size of the store;
    hard labels, where there are any, take 12 bytes a row beside that.

    Args:
        path: Directory of the store.
        sampled_labels: About how many labels are decoded; None for all.
        address: Scheduler of a `distributed` cluster whose workers see the same path; the threads
            of this process when None.
        progress: Called with (groups of shards done, groups).

    Raises:
        StoreError: If there is no store, or no scheduler at the address.
        SchemaMismatchError: If it is of another kind or version.
        CorruptLabelError: If its metadata was altered.
    """
    store = open_soft_labels(path)
    found = hard_labels_of(store)
    hard = found if isinstance(found, HardLabels) else None
    places = list(_places(store, sampled_labels))
    total = no_figures(store, hard)
    if places:
        total = reduce_groups(
            reduce_places,
            grouped(places),
            merge_figures,
            (store, hard),
            address=address,
            progress=progress,
        )
    return _summary(store, total, hard, None if isinstance(found, HardLabels) else found)


def _places(store: SoftLabelStore, sampled_labels: int | None) -> Iterator[Place]:
    """Yield every shard of which something was written."""
    schema = store.schema
    records = store.commits
    rows = records[:, :, 0]
    labels = int(rows.sum(dtype=np.int64))
    share = 1.0 if sampled_labels is None else min(sampled_labels / max(labels, 1), 1.0)
    written = written_places(store.path, schema)
    for view, places in itertools.groupby(written, key=operator.itemgetter(0)):
        chosen = _sampled_chunks(schema, view, rows[view] > 0, share)
        for _, shard in places:
            size = len(store.shard_span(shard))
            count, ids_crc, gaps_crc = records[view, shard].tolist()
            yield Place(
                view=view,
                shard=shard,
                record=(count, ids_crc, gaps_crc),
                sampled=_spans(schema, chosen[shard], size),
            )


def _sampled_chunks(
    schema: SoftLabelSchema, view: int, committed: npt.NDArray[np.bool_], share: float
) -> npt.NDArray[np.bool_]:
    """Return (shards, chunks of a shard) bool: chunks at even distances, others in each view."""
    size = schema.shard_rows // schema.chunk_rows
    chosen = np.zeros((schema.num_shards, size), np.bool_)
    ends = np.minimum(np.arange(1, schema.num_shards + 1) * schema.shard_rows, schema.num_rows)
    inside = -(-(ends - np.arange(schema.num_shards) * schema.shard_rows) // schema.chunk_rows)
    there = np.argwhere(committed[:, None] & (np.arange(size) < inside[:, None]))
    wanted = math.ceil(share * len(there))
    if wanted:
        shift = (view * GOLDEN_RATIO) % 1
        at = ((np.arange(wanted) + shift) * len(there) / wanted).astype(np.int64)
        chosen[tuple(there[at].T)] = True
    return chosen


def _spans(schema: SoftLabelSchema, chosen: npt.NDArray[np.bool_], size: int) -> tuple[range, ...]:
    """Return spans of rows of neighbouring chunks."""
    edges = np.flatnonzero(np.diff(chosen, prepend=False, append=False)) * schema.chunk_rows
    return tuple(
        range(int(start), min(int(stop), size))
        for start, stop in zip(edges[::2], edges[1::2], strict=True)
    )


def _summary(
    store: SoftLabelStore, total: ShardFigures, hard: HardLabels | None, why_not: str | None
) -> StoreSummary:
    schema = store.schema
    labels = int(total.labels.sum())
    sizes = {name: folder_bytes(store.path / name) for name in ("ids", "gaps")}
    size_bytes = folder_bytes(store.path)
    each = max(labels, 1)
    top = np.argsort(-total.classes, kind="stable")[:SHOWN].tolist()
    compared = total.by_vertical[:, :, 1:].sum(axis=(0, 1))
    names = schema.classes
    return StoreSummary(
        path=str(store.path),
        teacher=schema.teacher,
        fingerprint=schema.fingerprint,
        split=str(schema.split),
        num_rows=schema.num_rows,
        num_views=schema.num_views,
        k=schema.k,
        num_classes=schema.num_classes,
        activation=schema.activation,
        selection=schema.selection,
        top_p=schema.top_p,
        precision=schema.precision,
        temperatures=schema.temperatures,
        temperature=schema.temperatures[0],
        labels_per_view=tuple(total.labels.tolist()),
        labels=labels,
        retired_labels=total.retired if hard is not None else None,
        coverage=tuple((total.labels / max(schema.num_rows, 1)).tolist()),
        shards=schema.num_shards,
        shards_committed=int((store.commits[:, :, 0] > 0).sum()),
        size_bytes=size_bytes,
        bytes_per_label=size_bytes / each if labels else 0.0,
        classes=names,
        class_counts=tuple(total.classes.tolist()),
        top_classes=tuple((names[at], int(total.classes[at])) for at in top if total.classes[at]),
        verticals=_verticals(total, hard, schema),
        compared=int(compared[0]),
        agreement=float(compared[1] / compared[0]) if compared[0] else None,
        confused=_confused(total, schema),
        confused_missing=total.pairs.missing,
        hard_labels_problem=why_not,
        ids_bytes=sizes["ids"] / each if labels else 0.0,
        gaps_bytes=sizes["gaps"] / each if labels else 0.0,
        problems=total.problems,
        **_sample_fields(schema, total.sample, hard),
    )


def _verticals(
    total: ShardFigures, hard: HardLabels | None, schema: SoftLabelSchema
) -> tuple[VerticalSummary, ...]:
    """Return the verticals that the teacher knows, or has labelled all the same."""
    if hard is None:
        return ()
    figures = total.by_vertical
    known = {name.partition("/")[0] for name in schema.classes}
    return tuple(
        VerticalSummary(
            vertical=name,
            rows=int(hard.rows[at]),
            labels=tuple(figures[:, at, 0].tolist()),
            compared=int(figures[:, at, 1].sum()),
            agreed=int(figures[:, at, 2].sum()),
        )
        for at, name in enumerate(hard.verticals)
        if figures[:, at].any() or (name in known and hard.rows[at])
    )


def _confused(total: ShardFigures, schema: SoftLabelSchema) -> tuple[Confusion, ...]:
    found = []
    for at in np.argsort(-total.pairs.counts, kind="stable")[:SHOWN].tolist():
        hard, first = divmod(int(total.pairs.codes[at]), schema.num_classes)
        found.append(
            Confusion(
                hard=schema.classes[hard],
                first=schema.classes[first],
                labels=int(total.pairs.counts[at]),
            )
        )
    return tuple(found)


def _sample_fields(
    schema: SoftLabelSchema, sample: LabelSample | None, hard: HardLabels | None
) -> dict[str, Any]:
    """Return the fields of the summary that come from the sample."""
    edges = np.linspace(0.0, largest_entropy(schema), ENTROPY_BINS + 1)
    counts = sample.entropy_counts if sample else np.zeros(ENTROPY_BINS, np.int64)
    ids_bound = gaps_bound = 0.0
    if sample:
        found = _entropy_bytes(sample.ids_counts)
        # Columns that were not counted lie between two that were.
        ids_bound = float(np.interp(np.arange(schema.k), counted_columns(schema), found).sum())
        gaps_bound = float(_entropy_bytes(sample.gaps_counts).sum())
    tails = sample.tail_counts if sample else np.zeros(0, np.int64)
    return {
        "sampled": sample.labels if sample else 0,
        "entropy_mean": sample.entropy_sum / sample.labels if sample else 0.0,
        "entropy_percentiles": _percentiles(edges, counts) if sample else (),
        "entropy_edges": tuple(edges[:: ENTROPY_BINS // HISTOGRAM_BINS].tolist()),
        "entropy_counts": tuple(counts.reshape(HISTOGRAM_BINS, -1).sum(axis=1).tolist()),
        "tail_mean": sample.tail_sum / sample.labels if sample else 0.0,
        "tail_edges": tuple(TAIL_EDGES.tolist()),
        "tail_counts": tuple(tails.tolist()) if tails.any() else (),
        "ids_bound_bytes": ids_bound,
        "gaps_bound_bytes": gaps_bound,
        "disagreements": _disagreements(schema, sample, hard),
    }


def _entropy_bytes(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return the zeroth-order entropy of each row of (columns, symbols) counts, in bytes."""
    total = counts.sum(axis=1).astype(np.float64)
    logs = np.log2(np.maximum(counts, 1))
    bits: npt.NDArray[np.float64] = np.log2(total) - (counts * logs).sum(axis=1) / total
    return bits / 8


def _percentiles(
    edges: npt.NDArray[np.float64], counts: npt.NDArray[np.int64]
) -> tuple[tuple[int, float], ...]:
    below = np.concatenate([[0], np.cumsum(counts)])
    wanted = np.array(PERCENTILES) / 100 * below[-1]
    values = np.interp(wanted, below, edges)
    return tuple(zip(PERCENTILES, values.tolist(), strict=True))


def _disagreements(
    schema: SoftLabelSchema, sample: LabelSample | None, hard: HardLabels | None
) -> tuple[Disagreement, ...]:
    if sample is None or hard is None:
        return ()
    table = sample.disagreements[:SHOWN]
    keys = load_keys(hard.workspace, table["row"].tolist())
    return tuple(
        Disagreement(
            row=int(entry["row"]),
            view=int(entry["view"]),
            key=keys.get(int(entry["row"]), ""),
            hard=schema.classes[int(entry["hard"])],
            first=schema.classes[int(entry["first"])],
            first_probability=math.exp(entry["first_log"]),
            hard_probability=math.exp(entry["hard_log"]),
        )
        for entry in table
    )
