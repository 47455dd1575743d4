"""Where targets come from: the abstract `SignalSource`, and the one that reads stores.

In: hard labels from the manifest, soft labels and block features of any number of stores, joined
by (row, view).
Left out: pixels, losses, and any teacher; a source that runs live teachers exists only as the
baseline in `benchmarks/`.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.numerics.soft_label_batch import SoftLabelBatch
from pipeline.objectives.base import BlockFeatureBatch, TargetBatch
from pipeline.objectives.target_stream import BatchIndex, Rows, stream_targets

if TYPE_CHECKING:
    from pipeline.store import BlockFeatureStore, SoftLabelStore
    from storage_schemas.soft_labels import DecodedLabels

MixWeights = Callable[[Rows, Rows], tuple[Rows, npt.NDArray[np.float32]]]

ROWS_AT_ONCE = 32_768
BYTES_AT_ONCE = 2**24


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
            # (T, C + 1): which store fills each slot of a row of that class, -1 where none.
            first = np.argsort(~routes, axis=1, kind="stable")[:, : int(routes.sum(axis=1).max())]
            filled = np.take_along_axis(routes, first, axis=1)
            self._teacher_of = np.ascontiguousarray(np.where(filled, first, -1).T)
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
        return next(self.fetch_batches([(rows, views)]))

    def fetch_batches(self, batches: Sequence[BatchIndex]) -> Iterator[TargetBatch]:
        """Return the targets of n batches of B (rows, views) each, gathered and decoded together.

        All is read before it returns. Each batch's objects are made when it is asked for: hundreds
        at a time would have the garbage collector look for rings among them.

        Raises:
            MissingLabelError: If a routed label has not been written.
            CorruptLabelError: If stored bytes disagree with their commit record.
        """
        self._hold()
        count = len(batches)
        rows = np.concatenate([rows for rows, _ in batches])
        views = np.concatenate([views for _, views in batches])
        labels = self._labels.take(rows).astype(np.int64)
        shape = (count, len(rows) // count)
        fields: dict[str, Iterable[Any]] = {
            "rows": _split(rows.astype(np.int64, copy=False).reshape(shape))
        }
        if "labels" in self.provides:
            fields["labels"] = _split(labels.reshape(shape))
            if self._mix_weights is not None:
                partners, weights = self._mix_weights(rows, views)
                partner_labels = self._labels.take(partners).astype(np.int64)
                fields["partner_labels"] = _split(partner_labels.reshape(shape))
                fields["mix_weight"] = _split(weights.reshape(shape))
        if self._stores:
            fields["soft"] = self._soft(rows, views, labels, count)
        if self._features:
            fields["features"] = self._block_features(rows, views, labels, count)
        return (
            TargetBatch(**dict(zip(fields, values, strict=True)))
            for values in zip(*fields.values(), strict=True)
        )

    def stream(self, batches: Iterable[BatchIndex]) -> Generator[TargetBatch, None, None]:
        """Yield the targets of each of many (rows, views), fetched ahead (see `stream_targets`).

        Raises:
            MissingLabelError: If a routed label has not been written.
            CorruptLabelError: If stored bytes disagree with their commit record.
        """
        self._hold()
        most = max(BYTES_AT_ONCE // max(self._feature_bytes, 1), 1)
        yield from stream_targets(self.fetch_batches, batches, rows_at_once=min(ROWS_AT_ONCE, most))

    @property
    def _feature_bytes(self) -> int:
        """Bytes of the block features of one row, decoded."""
        return 4 * sum(
            math.prod(array.shape)
            for store in self._features.values()
            for array in store.schema.arrays
        )

    def _hold(self) -> None:
        """Read what is to be kept, in the process that is asked first for a batch."""
        if self._holds or self._to_hold is None or self._routes is None:
            return
        classes = self._labels[self._to_hold]
        for index in {*range(len(self._stores)), *self._features}:
            own = self._routes[classes, index]
            rows = self._to_hold[own]
            views = None if self._held_views is None else self._held_views[own]
            if index < len(self._stores):
                self._stores[index].hold(rows, views, temperature=self._temperature)
            if index in self._features:
                self._features[index].hold(rows, views)
        self._holds = True

    def _block_features(
        self, rows: Rows, views: Rows, labels: Rows, count: int
    ) -> Iterator[dict[str, BlockFeatureBatch]]:
        assert self._routes is not None
        shape = (count, len(rows) // count)
        parts: dict[str, tuple[tuple[Tensor, ...], tuple[Tensor, ...]]] = {}
        for index, store in self._features.items():
            present = self._routes[labels, index]
            found = store.fetch(rows[present], views[present])
            there = _split(present.reshape(shape))
            for array in store.schema.arrays:
                values = np.zeros((len(rows), *array.shape), np.float32)
                values[present] = found[array.name].values
                name = f"{store.schema.teacher}/{array.name}"
                parts[name] = _split(values.reshape(*shape, *array.shape)), there
        return (
            {
                name: BlockFeatureBatch(values=values[batch], present=there[batch])
                for name, (values, there) in parts.items()
            }
            for batch in range(count)
        )

    def _soft(self, rows: Rows, views: Rows, labels: Rows, count: int) -> Iterator[SoftLabelBatch]:
        # Everything is (batch, slot, row of the batch), and `teacher` says which store fills what.
        shape = (count, len(self._teacher_of), len(rows) // count)
        slots = self._teacher_of.take(labels, axis=1).reshape(shape[1], count, shape[2])
        teacher = np.ascontiguousarray(slots.swapaxes(0, 1)).reshape(-1)
        if len(teacher) == len(rows) > 0 and (teacher == teacher[0]).all() and teacher[0] >= 0:
            ids, log_probs, log_tail = self._padded(self._stores[teacher[0]], rows, views)
        else:
            ids = np.full((len(teacher), self._k), -1, np.int64)
            log_probs = np.full((len(teacher), self._k), -np.inf, np.float32)
            log_tail = np.full(len(teacher), -np.inf, np.float32)
            row_of = np.broadcast_to(np.arange(len(rows)).reshape(count, 1, -1), shape).reshape(-1)
            by_teacher = np.argsort(teacher.astype(np.int16), kind="stable")  # 16 bits: by radix
            edges = np.searchsorted(teacher[by_teacher], np.arange(len(self._stores) + 1))
            for index, store in enumerate(self._stores):
                where = by_teacher[edges[index] : edges[index + 1]]
                if len(where):
                    at = row_of[where]
                    found = self._padded(store, rows[at], views[at])
                    ids[where], log_probs[where], log_tail[where] = found
        parts = (
            _split(ids.reshape(*shape, self._k)),
            _split(log_probs.reshape(*shape, self._k)),
            _split(log_tail.reshape(shape)),
            _split(teacher.reshape(shape)),
        )
        return (
            SoftLabelBatch(ids=one, log_probs=two, log_tail=three, teacher=four)
            for one, two, three, four in zip(*parts, strict=True)
        )

    def _padded(self, store: SoftLabelStore, rows: Rows, views: Rows) -> DecodedLabels:
        """Return the labels of a store, with as many ranks as the store with most of them."""
        found = store.fetch(rows, views, temperature=self._temperature)
        missing = ((0, 0), (0, self._k - store.schema.k))
        if not any(missing[1]):
            return found
        return found._replace(
            ids=np.pad(found.ids, missing, constant_values=-1),
            log_probs=np.pad(found.log_probs, missing, constant_values=-np.inf),
        )


def _split(values: npt.NDArray[Any]) -> tuple[Tensor, ...]:
    """Return one tensor for each batch of (batch, ...); they share their memory."""
    return torch.from_numpy(values).unbind(0)
