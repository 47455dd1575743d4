"""The figures of two stores over some rows, as sums that can be merged.

In: the reading of the same rows from stores of any two layouts, agreement from `ids`, divergences
of sampled rows, and the merge. Left out: what the sums mean (compare.py).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.store.label_divergence import divergences, shared_labels
from pipeline.store.label_sample import hardest_rows
from pipeline.store.pair_counts import PairCounts, count_pairs, merge_pairs
from pipeline.store.shards import Array
from pipeline.store.soft_label_store import SoftLabelStore
from storage_schemas.errors import CorruptLabelError
from storage_schemas.soft_labels import decode

# Divergences compare every rank with every rank: few rows at once.
BLOCK_ROWS = 2_048

Counts = npt.NDArray[np.int64]
Ids = npt.NDArray[np.int64]
ROW_DIFFERENCE = np.dtype(
    [
        ("margin", np.float64),
        ("row", np.int64),
        ("view", np.int64),
        ("a", np.int64),
        ("b", np.int64),
        ("p_a", np.float64),
        ("p_b", np.float64),
        ("kl_ab", np.float64),
        ("kl_ba", np.float64),
    ]
)


@dataclass(frozen=True, kw_only=True, eq=False)
class JoinedStores:
    """Two stores of the same rows.

    Attributes:
        stores: Both.
        classes: All class names, those of the first store first.
        joint_of: For each store (C_t + 1,) position in `classes` of each local id; the last is -1.
        shared_of: For each store (C_t + 1,) position among the classes of both, -1 where the other
            lacks it; the last is -1.
        num_shared: How many classes both have.
        temperature: Of the divergences; None for none.
    """

    stores: tuple[SoftLabelStore, SoftLabelStore]
    classes: tuple[str, ...]
    joint_of: tuple[Ids, Ids]
    shared_of: tuple[Ids, Ids]
    num_shared: int
    temperature: float | None


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """Rows of one view in both stores.

    Attributes:
        view: The view.
        rows: Whole shards of at least one of the stores.
        sampled: Rows of which divergences are computed.
    """

    view: int
    rows: range
    sampled: tuple[range, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class ComparisonFigures:
    """Sums over rows.

    Attributes:
        views: (V, 4) by view: labels of a, of b, of both, and with the same first rank.
        classes: (classes, 3) by class: labels of both in which a, b, or both have it first.
        pairs: First rank of a and another one of b.
        sampled: Labels whose divergence was computed.
        kl_ab: Their sum of KL(a || b).
        kl_ba: Their sum of KL(b || a).
        rows: Of type `ROW_DIFFERENCE`, largest sum of both divergences first, one a row.
        problems: One sentence each.
    """

    views: Counts
    classes: Counts
    pairs: PairCounts
    sampled: int
    kl_ab: float
    kl_ba: float
    rows: npt.NDArray[np.void]
    problems: tuple[str, ...]


def no_comparison(joined: JoinedStores, problems: Sequence[str] = ()) -> ComparisonFigures:
    """Return the figures of no label."""
    views = min(store.schema.num_views for store in joined.stores)
    nothing = np.zeros(0, np.int64)
    return ComparisonFigures(
        views=np.zeros((views, 4), np.int64),
        classes=np.zeros((len(joined.classes), 3), np.int64),
        pairs=PairCounts(codes=nothing, counts=nothing),
        sampled=0,
        kl_ab=0.0,
        kl_ba=0.0,
        rows=np.zeros(0, ROW_DIFFERENCE),
        problems=tuple(problems),
    )


def compare_stretches(stretches: Sequence[Stretch], joined: JoinedStores) -> ComparisonFigures:
    """Return the figures of some stretches, read one after the other."""
    found = (_compare(stretch, joined) for stretch in stretches)
    return functools.reduce(lambda total, part: merge_comparisons([total, part]), found)


def _compare(stretch: Stretch, joined: JoinedStores) -> ComparisonFigures:
    problems: list[str] = []
    first, second = (_ids(store, stretch.view, stretch.rows, problems) for store in joined.stores)
    a, b = (
        _mapped(store, ids[:, 0], joint_of)
        for store, ids, joint_of in zip(
            joined.stores, (first, second), joined.joint_of, strict=True
        )
    )
    total = no_comparison(joined)
    both = (a >= 0) & (b >= 0)
    agreed = both & (a == b)
    total.views[stretch.view] = [(a >= 0).sum(), (b >= 0).sum(), both.sum(), agreed.sum()]
    for column, ids in enumerate((a[both], b[both], a[agreed])):
        total.classes[:, column] = np.bincount(ids, minlength=len(joined.classes))
    wrong = both & ~agreed
    pairs = count_pairs(a[wrong], b[wrong], len(joined.classes))
    parts = [total]
    for rows in stretch.sampled:
        here = slice(rows.start - stretch.rows.start, rows.stop - stretch.rows.start)
        blocks = (first[here], second[here])
        try:
            parts += _divergences(joined, stretch.view, rows, both[here], blocks)
        except CorruptLabelError as error:
            problems.append(str(error))
    figures = merge_comparisons(parts)
    return ComparisonFigures(
        **{**vars(figures), "pairs": pairs, "problems": tuple(problems)},
    )


def _mapped(store: SoftLabelStore, ids: Array, table: Ids) -> Ids:
    """Return the table's entries of local ids, and its last one for fill."""
    return table[np.where(ids == store.schema.ids_fill, len(table) - 1, ids).astype(np.int64)]


def _shards(store: SoftLabelStore, rows: range) -> Iterator[tuple[int, range]]:
    """Yield the shards that hold some rows, and which of them each holds."""
    size = store.schema.shard_rows
    stop = min(rows.stop, store.schema.num_rows)
    for shard in range(rows.start // size, -(-stop // size)):
        span = store.shard_span(shard)
        yield shard, range(max(rows.start, span.start), min(stop, span.stop))


def _ids(store: SoftLabelStore, view: int, rows: range, problems: list[str]) -> Array:
    """Return the ids of some rows, fill where there is no sound label."""
    ids, _ = store.schema.empty(len(rows))
    for shard, part in _shards(store, rows):
        try:
            count, crc, _ = store.commit_record(view, shard)
            if not count:
                continue
            found = store.read_shard_ids(view, shard, crc)
        except CorruptLabelError as error:
            problems.append(str(error))
            continue
        first = store.shard_span(shard).start
        ids[part.start - rows.start : part.stop - rows.start] = found[
            part.start - first : part.stop - first
        ]
    if ((ids >= store.schema.num_classes) & (ids != store.schema.ids_fill)).any():
        problems.append(
            f"{store.path}: view {view}, rows {rows.start} to {rows.stop - 1}: an id is not below "
            f"{store.schema.num_classes}"
        )
        ids[:] = store.schema.ids_fill
    return ids


def _gaps(store: SoftLabelStore, view: int, rows: range) -> Array:
    _, gaps = store.schema.empty(len(rows))
    for shard, part in _shards(store, rows):
        if not store.commit_record(view, shard)[0]:
            continue
        first = store.shard_span(shard).start
        inside = range(part.start - first, part.stop - first)
        found = store.read_shard_gaps(view, shard, inside)
        gaps[part.start - rows.start : part.stop - rows.start] = found
    return gaps


def _divergences(
    joined: JoinedStores,
    view: int,
    rows: range,
    both: npt.NDArray[np.bool_],
    ids: tuple[Array, Array],
) -> Iterator[ComparisonFigures]:
    if joined.temperature is None or not both.any():
        return
    gaps = [_gaps(store, view, rows) for store in joined.stores]
    chosen = np.flatnonzero(both)
    for at in range(0, len(chosen), BLOCK_ROWS):
        block = chosen[at : at + BLOCK_ROWS]
        labels = [
            decode(store.schema, own[block], codes[block], joined.temperature)
            for store, own, codes in zip(joined.stores, ids, gaps, strict=True)
        ]
        a, b = (
            shared_labels(found, shared_of, store.schema.num_classes)
            for found, shared_of, store in zip(labels, joined.shared_of, joined.stores, strict=True)
        )
        forward, backward = divergences(a, b, joined.num_shared)
        table = np.zeros(len(block), ROW_DIFFERENCE)
        table["kl_ab"], table["kl_ba"], table["margin"] = forward, backward, forward + backward
        table["row"], table["view"] = rows.start + block, view
        table["a"], table["b"] = (
            joint_of[found.ids[:, 0]]
            for found, joint_of in zip(labels, joined.joint_of, strict=True)
        )
        table["p_a"], table["p_b"] = (np.exp(found.log_probs[:, 0]) for found in labels)
        part = no_comparison(joined)
        yield ComparisonFigures(
            **{
                **vars(part),
                "sampled": len(block),
                "kl_ab": float(forward.sum()),
                "kl_ba": float(backward.sum()),
                "rows": hardest_rows(table),
            }
        )


def merge_comparisons(parts: Sequence[ComparisonFigures]) -> ComparisonFigures:
    """Return the figures of all parts together."""
    return ComparisonFigures(
        views=functools.reduce(np.add, [part.views for part in parts]),
        classes=functools.reduce(np.add, [part.classes for part in parts]),
        pairs=merge_pairs([part.pairs for part in parts]),
        sampled=sum(part.sampled for part in parts),
        kl_ab=sum(part.kl_ab for part in parts),
        kl_ba=sum(part.kl_ba for part in parts),
        rows=hardest_rows(np.concatenate([part.rows for part in parts])),
        problems=tuple(problem for part in parts for problem in part.problems),
    )
