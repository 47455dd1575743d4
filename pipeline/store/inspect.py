"""What a store holds and how healthy it is, reduced shard by shard with Dask.

In: `inspect_store` and its result. Left out: printing (flows) and plots (pipeline.report).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.locations import folder_bytes
from pipeline.store.lazy import entropy
from pipeline.store.opening import open_soft_labels
from pipeline.store.soft_label_store import SoftLabelStore
from pipeline.store.verify import shard_problems
from storage_schemas.soft_labels import decode

ENTROPY_BINS = 32
TOP_CLASSES = 20


@dataclass(frozen=True, kw_only=True)
class StoreSummary:
    """What a store holds.

    Means and histograms are over all labels, at the first declared temperature.

    Attributes:
        path: Directory of the store.
        teacher: Name of the specialist.
        fingerprint: Name of the store.
        num_rows: N.
        num_views: V.
        k: K.
        num_classes: C_t.
        activation: softmax or sigmoid.
        selection: top_k, top_p or sampled.
        top_p: Mass that top_p keeps; None otherwise.
        precision: compact or exact.
        temperatures: At which labels can be decoded.
        temperature: At which the figures below were computed.
        labels_per_view: Labels in sound, committed shards, per view.
        labels: Their sum.
        coverage: Per view, share of the rows that are labelled.
        shards: Shards per view.
        shards_committed: Committed shards, all views.
        size_bytes: Size of all files.
        bytes_per_label: `size_bytes` over `labels`; 0 when there is none.
        entropy_mean: In nats.
        entropy_edges: Edges of the histogram's bins, in nats.
        entropy_counts: Labels per bin.
        tail_mean: Mean mass outside the stored classes.
        top_classes: The most frequent first-rank classes, (name, labels).
        problems: As from `verify_store(depth="full")`; empty means sound.
    """

    path: str
    teacher: str
    fingerprint: str
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
    coverage: tuple[float, ...]
    shards: int
    shards_committed: int
    size_bytes: int
    bytes_per_label: float
    entropy_mean: float
    entropy_edges: tuple[float, ...]
    entropy_counts: tuple[int, ...]
    tail_mean: float
    top_classes: tuple[tuple[str, int], ...]
    problems: tuple[str, ...]

    @property
    def is_healthy(self) -> bool:
        """Whether nothing is damaged."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True)
class _Partial:
    view: int
    labels: int
    entropy_sum: float
    tail_sum: float
    entropy_counts: npt.NDArray[np.int64]
    class_counts: npt.NDArray[np.int64]
    problems: tuple[str, ...]


def _edges(store: SoftLabelStore) -> npt.NDArray[np.float64]:
    schema = store.schema
    sigmoid = schema.activation == "sigmoid"
    top = schema.k * np.log(2) if sigmoid else np.log(max(schema.num_classes, 2))
    # A little above the largest possible entropy, which float32 may round up.
    return np.linspace(0.0, float(top) * (1 + 1e-5), ENTROPY_BINS + 1)


def _reduce_shard(
    store: SoftLabelStore, view: int, shard: int, edges: npt.NDArray[np.float64]
) -> _Partial:
    schema = store.schema
    problems = shard_problems(store, view, shard, "full")
    ids, gaps = schema.empty(0)
    if not problems and store.commit_record(view, shard)[0]:
        ids, gaps = store.read_shard(view, shard)
        labelled = ids[:, 0] != schema.ids_fill
        ids, gaps = ids[labelled], gaps[labelled]
    found = decode(schema, ids, gaps, schema.temperatures[0])
    values = entropy(schema, found)
    return _Partial(
        view=view,
        labels=len(ids),
        entropy_sum=float(values.sum(dtype=np.float64)),
        tail_sum=float(np.exp(found.log_tail).sum(dtype=np.float64)),
        entropy_counts=np.histogram(np.clip(values, 0, edges[-1]), bins=edges)[0],
        class_counts=np.bincount(found.ids[:, 0], minlength=schema.num_classes),
        problems=tuple(problems),
    )


def _merge(
    parts: Sequence[_Partial], num_views: int, num_classes: int
) -> tuple[list[int], _Partial]:
    per_view = [sum(part.labels for part in parts if part.view == v) for v in range(num_views)]
    return per_view, _Partial(
        view=-1,
        labels=sum(per_view),
        entropy_sum=sum(part.entropy_sum for part in parts),
        tail_sum=sum(part.tail_sum for part in parts),
        entropy_counts=sum(
            (part.entropy_counts for part in parts), np.zeros(ENTROPY_BINS, np.int64)
        ),
        class_counts=sum((part.class_counts for part in parts), np.zeros(num_classes, np.int64)),
        problems=tuple(problem for part in parts for problem in part.problems),
    )


def inspect_store(path: Path) -> StoreSummary:
    """Read a whole store and summarise it; damaged shards are listed, not counted.

    Raises:
        StoreError: If there is no store.
        SchemaMismatchError: If it is of another kind or version.
        CorruptLabelError: If its metadata was altered.
    """
    import dask

    store = open_soft_labels(path)
    schema = store.schema
    edges = _edges(store)
    handle = dask.delayed(store, pure=False, traverse=False)
    reduce_shard = dask.delayed(_reduce_shard, pure=False)
    parts = dask.compute(
        *(
            reduce_shard(handle, view, shard, edges)
            for view, shard in np.ndindex(schema.num_views, schema.num_shards)
        )
    )
    per_view, total = _merge(parts, schema.num_views, schema.num_classes)
    size_bytes = folder_bytes(store.path)
    top = np.argsort(-total.class_counts, kind="stable")[:TOP_CLASSES].tolist()
    count = max(total.labels, 1)
    return StoreSummary(
        path=str(store.path),
        teacher=schema.teacher,
        fingerprint=schema.fingerprint,
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
        labels_per_view=tuple(per_view),
        labels=total.labels,
        coverage=tuple(labels / max(schema.num_rows, 1) for labels in per_view),
        shards=schema.num_shards,
        shards_committed=int((store.commits[:, :, 0] > 0).sum()),
        size_bytes=size_bytes,
        bytes_per_label=size_bytes / total.labels if total.labels else 0.0,
        entropy_mean=total.entropy_sum / count,
        entropy_edges=tuple(edges.tolist()),
        entropy_counts=tuple(total.entropy_counts.tolist()),
        tail_mean=total.tail_sum / count,
        top_classes=tuple(
            (schema.classes[at], int(total.class_counts[at]))
            for at in top
            if total.class_counts[at]
        ),
        problems=total.problems,
    )
