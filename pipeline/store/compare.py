"""Two stores of the same samples: two teachers, or two versions of one.

In: whether two stores can be joined, the pass over both, and what its sums mean. Left out: the
values (store_comparison.py), the sums (comparison_figures.py), the divergence
(label_divergence.py), printing (flows).

Rows are joined by their number, so both stores must be of one manifest; classes by name. Agreement
is exact, over all labels that both have. Divergences come from a sample, as in inspect.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.hard_labels import load_hard_labels, load_keys
from pipeline.store.comparison_figures import (
    ComparisonFigures,
    JoinedStores,
    Stretch,
    compare_stretches,
    merge_comparisons,
    no_comparison,
)
from pipeline.store.hard_labels import workspace_of
from pipeline.store.inspect import GOLDEN_RATIO, SAMPLED_LABELS, SHOWN
from pipeline.store.opening import open_soft_labels
from pipeline.store.reduction import Progress, grouped, reduce_groups
from pipeline.store.soft_label_store import SoftLabelStore
from pipeline.store.store_comparison import (
    FEWEST_LABELS,
    ClassAgreement,
    PairDifference,
    RowDifference,
    StoreComparison,
    ViewAgreement,
)
from storage_schemas.errors import ConcentrateError, SchemaMismatchError

# What says how a store was written, and not what its labels are.
_NOT_COMPARED = ("classes", "global_ids", "grown_at", "library_versions", "created")
_BY_KEY = ("recipe", "fingerprint_parts")


def compare_stores(
    a: Path,
    b: Path,
    *,
    temperature: float | None = None,
    sampled_labels: int | None = SAMPLED_LABELS,
    address: str | None = None,
    progress: Progress | None = None,
) -> StoreComparison:
    """Read two stores side by side and say where they differ.

    Args:
        a: Directory of a store.
        b: Directory of another one, of the same manifest and split.
        temperature: Of the divergences; the first one that both declare when None.
        sampled_labels: Of about how many labels divergences are computed; None for all.
        address: Scheduler of a `distributed` cluster; threads of this process when None.
        progress: Called with (groups of rows done, groups).

    Raises:
        StoreError: If one of them is not there, or no scheduler at the address.
        SchemaMismatchError: If they do not label the same samples, or the temperature is not
            declared by both.
        CorruptLabelError: If metadata was altered.
    """
    stores = (open_soft_labels(a), open_soft_labels(b))
    _refuse_other_rows(stores)
    joined, why_not = _join(stores, temperature)
    total = no_comparison(joined)
    stretches = list(_stretches(stores, sampled_labels))
    if stretches:
        total = reduce_groups(
            compare_stretches,
            grouped(stretches),
            merge_comparisons,
            (joined,),
            address=address,
            progress=progress,
        )
    return _comparison(joined, total, why_not)


def _refuse_other_rows(stores: tuple[SoftLabelStore, SoftLabelStore]) -> None:
    """Raise unless row i is the same sample in both stores."""
    a, b = (store.schema for store in stores)
    problems = []
    if a.split != b.split:
        problems.append(f"split must be {a.split!r} as in the first store, got {b.split!r}")
    origins = {_origin(store) for store in stores}
    if len(origins) > 1 and not any(origins <= _prefixes(store) for store in stores):
        problems.append(
            f"manifest_chain must be {a.manifest_chain[:12]} ({a.manifest_rows} rows), got "
            f"{b.manifest_chain[:12]} ({b.manifest_rows} rows): row numbers are other samples. "
            "Compare stores of one workspace"
        )
    if problems:
        raise SchemaMismatchError(str(stores[1].path), problems)


def _origin(store: SoftLabelStore) -> tuple[str, int]:
    return store.schema.manifest_chain, store.schema.manifest_rows


def _prefixes(store: SoftLabelStore) -> set[tuple[str, int]]:
    """Return the chains of the workspace's manifest, one after each of its appends."""
    workspace = workspace_of(store)
    try:
        return set(load_hard_labels(workspace).prefixes) if workspace is not None else set()
    except ConcentrateError:
        return set()


def _join(
    stores: tuple[SoftLabelStore, SoftLabelStore], temperature: float | None
) -> tuple[JoinedStores, str | None]:
    a, b = (store.schema for store in stores)
    classes = tuple(dict.fromkeys((*a.classes, *b.classes)))
    joint = {name: position for position, name in enumerate(classes)}
    common = set(a.classes) & set(b.classes)
    shared = {name: at for at, name in enumerate(name for name in classes if name in common)}

    def table(names: tuple[str, ...], index: dict[str, int]) -> Any:
        return np.array([*(index.get(name, -1) for name in names), -1], np.int64)

    why_not = None
    declared = [value for value in a.temperatures if value in b.temperatures]
    if temperature is not None:
        for schema in (a, b):
            schema.temperature_index(temperature)
        declared = [temperature]
    if "sigmoid" in (a.activation, b.activation):
        why_not = "a divergence needs distributions: one of the stores holds sigmoid labels"
    elif "sampled" in (a.selection, b.selection):
        why_not = "a divergence of draws is infinite: one of the stores holds sampled labels"
    elif not common:
        why_not = "the stores have no class in common"
    elif not declared:
        why_not = f"no temperature is declared by both: {a.temperatures} and {b.temperatures}"
    joined = JoinedStores(
        stores=stores,
        classes=classes,
        joint_of=(table(a.classes, joint), table(b.classes, joint)),
        shared_of=(table(a.classes, shared), table(b.classes, shared)),
        num_shared=len(shared),
        temperature=None if why_not else declared[0],
    )
    return joined, why_not


def _stretches(
    stores: tuple[SoftLabelStore, SoftLabelStore], sampled_labels: int | None
) -> Iterator[Stretch]:
    """Yield the rows of both stores, by the coarser of the two grids of shards."""
    a, b = (store.schema for store in stores)
    size = max(a.shard_rows, b.shard_rows)
    block = max(a.chunk_rows, b.chunk_rows)
    rows = min(a.num_rows, b.num_rows)
    labels = min(int(store.commits[:, :, 0].sum(dtype=np.int64)) for store in stores)
    share = 1.0 if sampled_labels is None else min(sampled_labels / max(labels, 1), 1.0)
    blocks = -(-rows // block)
    wanted = math.ceil(share * blocks)
    for view in range(min(a.num_views, b.num_views)):
        shift = (view * GOLDEN_RATIO) % 1
        starts = ((np.arange(wanted) + shift) * blocks / max(wanted, 1)).astype(np.int64) * block
        for first in range(0, rows, size):
            stop = min(first + size, rows)
            inside = starts[(starts >= first) & (starts < stop)].tolist()
            sampled = tuple(range(start, min(start + block, stop)) for start in inside)
            yield Stretch(view=view, rows=range(first, stop), sampled=sampled)


def _comparison(
    joined: JoinedStores, total: ComparisonFigures, why_not: str | None
) -> StoreComparison:
    a, b = (store.schema for store in joined.stores)
    names = joined.classes
    labels, agreed = (int(total.views[:, column].sum()) for column in (2, 3))
    shared = len(set(a.classes) & set(b.classes))
    pairs = []
    for at in np.argsort(-total.pairs.counts, kind="stable")[:SHOWN].tolist():
        first, second = divmod(int(total.pairs.codes[at]), len(names))
        count = int(total.pairs.counts[at])
        pairs.append(PairDifference(a=names[first], b=names[second], labels=count))
    return StoreComparison(
        paths=(str(joined.stores[0].path), str(joined.stores[1].path)),
        teachers=(a.teacher, b.teacher),
        differences=tuple(_differences(joined)),
        classes=(shared, len(a.classes) - shared, len(b.classes) - shared),
        views=tuple(
            ViewAgreement(a=own, b=other, both=both, agreed=same)
            for own, other, both, same in total.views.tolist()
        ),
        labels=labels,
        agreement=agreed / labels if labels else None,
        lowest=_lowest(total, names),
        pairs=tuple(pairs),
        pairs_missing=total.pairs.missing,
        temperature=joined.temperature,
        kl_problem=why_not,
        sampled=total.sampled,
        kl_ab=total.kl_ab / total.sampled if total.sampled else None,
        kl_ba=total.kl_ba / total.sampled if total.sampled else None,
        rows=_rows(joined, total),
        problems=total.problems,
    )


def _differences(joined: JoinedStores) -> Iterator[tuple[str, str, str]]:
    a, b = (store.schema.model_dump(mode="json") for store in joined.stores)
    for name in a:
        if name in _BY_KEY:
            for key in sorted({*a[name], *b[name]}):
                if a[name].get(key) != b[name].get(key):
                    yield f"{name}.{key}", str(a[name].get(key)), str(b[name].get(key))
        elif name not in _NOT_COMPARED and a[name] != b[name]:
            yield name, str(a[name]), str(b[name])


def _lowest(total: ComparisonFigures, names: tuple[str, ...]) -> tuple[ClassAgreement, ...]:
    a, b, both = total.classes.T
    either = a + b - both
    known = np.flatnonzero(either >= FEWEST_LABELS)
    order = np.lexsort((-either[known], both[known] / either[known]))
    return tuple(
        ClassAgreement(name=names[at], a=int(a[at]), b=int(b[at]), both=int(both[at]))
        for at in known[order][:SHOWN].tolist()
    )


def _rows(joined: JoinedStores, total: ComparisonFigures) -> tuple[RowDifference, ...]:
    table = total.rows[:SHOWN]
    store = joined.stores[0]
    workspace = workspace_of(store)
    keys = {}
    if workspace is not None and _origin(store) in _prefixes(store):
        keys = load_keys(workspace, table["row"].tolist())
    return tuple(
        RowDifference(
            row=int(entry["row"]),
            view=int(entry["view"]),
            key=keys.get(int(entry["row"]), ""),
            a=joined.classes[int(entry["a"])],
            b=joined.classes[int(entry["b"])],
            a_probability=float(entry["p_a"]),
            b_probability=float(entry["p_b"]),
            kl_ab=float(entry["kl_ab"]),
            kl_ba=float(entry["kl_ba"]),
        )
        for entry in table
    )
