"""All current stores of a project for one split, opened: what a student is trained from.

Left out: finding and checking them (published.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from pipeline.data.routing import routed_rows
from pipeline.store.block_feature_store import BlockFeatureStore
from pipeline.store.coverage import AvailablePairs
from pipeline.store.soft_label_store import SoftLabelStore
from storage_schemas.manifest import Manifest

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class PublishedLabels:
    """The current stores of all teachers for one split.

    Attributes:
        names: Teachers, in the order of the project file.
        stores: One per teacher, opened.
        routes: (C + 1, T) which rows each labels; None where there is no store.
        counts: Of each, the labels that can be used and those that there should be.
        available: The (row, view) pairs to train on; None when that is every pair.
        labelled_rows: Of each, the rows labelled in every view; None when that is every row.
        unpublished: Teachers of which nothing is published; they take no part.
        features: By position of the teacher, its block features, where the student reads them.
    """

    names: tuple[str, ...] = ()
    stores: tuple[SoftLabelStore, ...] = ()
    routes: npt.NDArray[np.bool_] | None = None
    counts: tuple[tuple[int, int], ...] = ()
    available: AvailablePairs | None = None
    labelled_rows: tuple[Rows, ...] | None = None
    unpublished: tuple[str, ...] = ()
    features: Mapping[int, BlockFeatureStore] = field(default_factory=dict)

    @property
    def is_partial(self) -> bool:
        """Whether some labels, or some teachers, are left out."""
        return self.available is not None or bool(self.unpublished)

    def coverage(self) -> dict[str, list[int]]:
        """Return, by teacher, the labels that can be used and those that there should be."""
        found = {name: list(pair) for name, pair in zip(self.names, self.counts, strict=True)}
        return found | {name: [0, 0] for name in self.unpublished}

    def labelled(self, index: int, rows: Rows) -> Rows:
        """Return those of the rows that one teacher has labelled in every view."""
        return (
            rows if self.labelled_rows is None else rows[np.isin(rows, self.labelled_rows[index])]
        )

    def identity(self) -> list[list[str]]:
        """Return name, fingerprint and digest of all commit records of each store."""
        return [
            [name, store.schema.fingerprint, commits_digest(store)]
            for name, store in zip(self.names, self.stores, strict=True)
        ]

    def feature_identity(self) -> list[list[str]]:
        """Return name, fingerprint and digest of all commit records of each feature store."""
        return [
            [self.names[index], store.schema.fingerprint, commits_digest(store)]
            for index, store in self.features.items()
        ]

    @property
    def feature_shapes(self) -> dict[str, tuple[int, int, int]]:
        """(channels, height, width) of each block feature by `<teacher>/<array>`."""
        return {name: s for store in self.features.values() for name, s in store.shapes.items()}

    def feature_bytes(self, manifest: Manifest, split: int) -> int:
        """Return the memory that all block features of a split take, as stored."""
        assert self.routes is not None
        total = 0
        for index, store in self.features.items():
            rows = routed_rows(manifest, split, self.routes[:, index])
            total += len(rows) * store.schema.num_views * store.schema.row_bytes
        return total

    def held_bytes(self, manifest: Manifest, split: int) -> int:
        """Return the memory that all labels of a split take where they are held."""
        assert self.routes is not None
        return sum(
            len(routed_rows(manifest, split, self.routes[:, index]))
            * store.schema.num_views
            * store.held_label_bytes
            for index, store in enumerate(self.stores)
        )


def commits_digest(store: SoftLabelStore | BlockFeatureStore) -> str:
    """Return the sha256 hex digest of a store's commit records up to its last labelled shard."""
    commits = store.commits
    used = np.flatnonzero(commits[:, :, 0].any(axis=0))
    last = int(used[-1]) + 1 if len(used) else 0
    return hashlib.sha256(commits[:, :last].astype("<u4").tobytes()).hexdigest()
