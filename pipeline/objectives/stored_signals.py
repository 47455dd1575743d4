"""Where targets come from: the abstract `SignalSource`, and the one that reads stores.

In: hard labels from the manifest, soft labels and block features of any number of stores, joined
by (row, view).
Left out: pixels, losses, and any teacher; a source that runs live teachers exists only as the
baseline in `benchmarks/`.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.numerics.soft_label_batch import SoftLabelBatch
from pipeline.objectives.base import BlockFeatureBatch, TargetBatch

if TYPE_CHECKING:
    from pipeline.store import BlockFeatureStore, SoftLabelStore

Rows = npt.NDArray[np.int64]
MixWeights = Callable[[Rows, Rows], tuple[Rows, npt.NDArray[np.float32]]]


class SignalSource(abc.ABC):
    """Targets of (row, view) pairs.

    Attributes:
        provides: Which fields of `TargetBatch` are filled.
    """

    provides: frozenset[str]

    @abc.abstractmethod
    def fetch(self, rows: Rows, views: Rows) -> TargetBatch:
        """Return the targets of (B,) rows and (B,) views."""


class StoredSignals(SignalSource):
    """Hard labels, stored soft labels and stored block features.

    Args:
        labels: (N,) label of every manifest row, as the student counts classes; -1: unlabelled.
        stores: One per teacher, in the order of the objective's supports.
        routes: (C + 1, number of stores) bool: whether the store labels rows of that class; the
            last row is for unlabelled images.
        temperature: At which the stored labels are decoded; every store must declare it.
        mix_weights: (rows, views) -> partner rows and weights, where the recipe mixes images.
        held_rows: Ascending rows whose soft labels and features each process keeps in memory, from
            its first batch on; None: shards are cached as they come.
        held_views: (held rows, V) bool, which of their views exist; None: all.
        features: By store number, the block features of its teacher.

    Raises:
        SchemaMismatchError: If a store does not declare the temperature; lists those it has.
    """

    def __init__(
        self,
        labels: npt.NDArray[np.integer],
        *,
        stores: Sequence[SoftLabelStore] = (),
        routes: npt.NDArray[np.bool_] | None = None,
        temperature: float = 1.0,
        mix_weights: MixWeights | None = None,
        held_rows: Rows | None = None,
        held_views: npt.NDArray[np.bool_] | None = None,
        features: Mapping[int, BlockFeatureStore] | None = None,
    ) -> None:
        self._labels = labels
        self._stores = tuple(stores)
        self._routes = routes
        self._temperature = temperature
        self._mix_weights = mix_weights
        self._to_hold, self._held_views = held_rows, held_views
        self._holds = False
        provides = {"labels"} if (labels >= 0).any() else set()
        self._features = dict(features or {})
        provides |= {"soft"} if self._stores else set()
        self.provides = frozenset(provides | ({"features"} if self._features else set()))
        if self._stores:
            if routes is None or routes.shape[1] != len(self._stores):
                raise ValueError("routes must have one column per store")
            for store in self._stores:
                store.schema.temperature_index(temperature)
            self._slots = np.cumsum(routes, axis=1) - 1
            self._depth = int(routes.sum(axis=1).max())
            self._k = max(store.schema.k for store in self._stores)

    def __getstate__(self) -> dict[str, Any]:
        """Say nothing of what is in memory: stores are opened anew where they arrive."""
        return self.__dict__ | {"_holds": False}

    def fetch(self, rows: Rows, views: Rows) -> TargetBatch:
        """Return the targets of (B,) rows and (B,) views.

        Raises:
            MissingLabelError: If a routed label has not been written.
            CorruptLabelError: If stored bytes disagree with their commit record.
        """
        self._hold()
        labels = self._labels[rows].astype(np.int64)
        partner_labels = mix_weight = None
        if self._mix_weights is not None and "labels" in self.provides:
            partners, weights = self._mix_weights(rows, views)
            partner_labels = torch.from_numpy(self._labels[partners].astype(np.int64))
            mix_weight = torch.from_numpy(weights)
        return TargetBatch(
            labels=torch.from_numpy(labels) if "labels" in self.provides else None,
            partner_labels=partner_labels,
            mix_weight=mix_weight,
            soft=self._soft(rows, views, labels) if self._stores else None,
            rows=torch.from_numpy(rows.astype(np.int64)),
            features=self._block_features(rows, views, labels) if self._features else None,
        )

    def _hold(self) -> None:
        """Read what is to be kept, in the process that is asked first for a batch."""
        if self._holds or self._to_hold is None or self._routes is None:
            return
        classes = self._labels[self._to_hold]
        held: list[tuple[int, SoftLabelStore | BlockFeatureStore]] = list(enumerate(self._stores))
        for index, store in held + list(self._features.items()):
            own = self._routes[classes, index]
            views = None if self._held_views is None else self._held_views[own]
            store.hold(self._to_hold[own], views)
        self._holds = True

    def _block_features(
        self, rows: Rows, views: Rows, labels: Rows
    ) -> dict[str, BlockFeatureBatch]:
        assert self._routes is not None
        batches = {}
        for index, store in self._features.items():
            present = self._routes[labels, index]
            found = store.fetch(rows[present], views[present])
            for array in store.schema.arrays:
                values = np.zeros((len(rows), *array.shape), np.float32)
                values[present] = found[array.name].values
                batches[f"{store.schema.teacher}/{array.name}"] = BlockFeatureBatch(
                    values=torch.from_numpy(values), present=torch.from_numpy(present)
                )
        return batches

    def _soft(self, rows: Rows, views: Rows, labels: Rows) -> SoftLabelBatch:
        assert self._routes is not None
        shape = (self._depth, len(rows), self._k)
        ids = np.full(shape, -1, np.int64)
        log_probs = np.full(shape, -np.inf, np.float32)
        log_tail = np.full(shape[:2], -np.inf, np.float32)
        teacher = np.full(shape[:2], -1, np.int64)
        routed = self._routes[labels]
        for index, store in enumerate(self._stores):
            where = np.flatnonzero(routed[:, index])
            if len(where) == 0:
                continue
            slot = self._slots[labels[where], index]
            found = store.fetch(rows[where], views[where], temperature=self._temperature)
            k = store.schema.k
            ids[slot, where, :k] = found.ids
            log_probs[slot, where, :k] = found.log_probs
            log_tail[slot, where] = found.log_tail
            teacher[slot, where] = index
        return SoftLabelBatch(
            ids=torch.from_numpy(ids),
            log_probs=torch.from_numpy(log_probs),
            log_tail=torch.from_numpy(log_tail),
            teacher=torch.from_numpy(teacher),
        )
