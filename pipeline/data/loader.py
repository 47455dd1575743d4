"""The loader: images of a view joined with the targets of the same view.

In: a map-style data set whose items are whole batches, and the torch DataLoader over the batch
order from any step on, its batches joined with targets that are streamed beside it. Left out: the
order itself (epoch_order.py), pixels (view_reader.py) and targets (objectives). torch's DataLoader
keeps the order whatever the number of workers; workers start by forkserver, since a fork after
threads may hang. They end with the process that they read for, however that ends.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from pipeline.data.epoch_order import BatchOrder, Rows
from pipeline.objectives.base import TargetBatch

BatchIndex = tuple[Rows, Rows]
StreamTargets = Callable[[Iterable[BatchIndex]], Generator[TargetBatch, None, None]]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One step's input.

    Attributes:
        images: (B, channels, S, S) float32, normalised.
        targets: What the images should become.
        rows: (B,) int64 manifest rows.
        views: (B,) int64.
    """

    images: Tensor
    targets: TargetBatch
    rows: Tensor
    views: Tensor

    def pin_memory(self) -> Batch:
        """Return the batch with images and targets in page-locked memory."""
        return replace(self, images=self.images.pin_memory(), targets=self.targets.pin_memory())


class BatchDataset(Dataset[Batch]):
    """Item = one batch, addressed by its rows and views.

    Args:
        read_images: (rows, views) -> (B, channels, S, S), e.g. `ViewReader.read`.
        fetch_targets: (rows, views) -> TargetBatch, e.g. `StoredSignals.fetch`.
        stream_targets: The same for all batches of a run, e.g. `StoredSignals.stream`. A loader
            then streams targets in the process that trains, and its workers read images alone.
    """

    def __init__(
        self,
        read_images: Callable[[Rows, Rows], Tensor],
        fetch_targets: Callable[[Rows, Rows], TargetBatch],
        stream_targets: StreamTargets | None = None,
    ) -> None:
        self.read_images = read_images
        self.fetch_targets = fetch_targets
        self.stream_targets = stream_targets

    def __getitem__(self, index: BatchIndex) -> Batch:
        rows, views = index
        return Batch(
            images=self.read_images(rows, views),
            targets=self.fetch_targets(rows, views),
            rows=torch.from_numpy(rows),
            views=torch.from_numpy(views),
        )


class _FromStep(Sampler[BatchIndex]):
    def __init__(self, order: BatchOrder, epochs: int, first_step: int) -> None:
        self.order, self.epochs, self.first_step = order, epochs, first_step

    def __len__(self) -> int:
        return self.epochs * self.order.steps_per_epoch - self.first_step

    def __iter__(self) -> Iterator[BatchIndex]:
        first_epoch, skip = divmod(self.first_step, self.order.steps_per_epoch)
        for epoch in range(first_epoch, self.epochs):
            yield from self.order.batches(epoch, skip if epoch == first_epoch else 0)


class EndWithOwner:
    """`worker_init_fn` of every loader: ends a worker when the process it works for is gone.

    torch's own watch looks at the parent of a worker. That is the fork server, which itself lives
    as long as a worker does, so after a SIGKILL both would stay for ever. Here the worker reads
    from a pipe whose other end only that process holds.
    """

    def __init__(self) -> None:
        self._end, self._held = multiprocessing.Pipe(duplex=False)

    def __getstate__(self) -> dict[str, Any]:
        return {"_end": self._end}

    def __call__(self, worker: int) -> None:
        """Start waiting for the end of the owner."""
        threading.Thread(target=self._wait, daemon=True).start()

    def _wait(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            self._end.recv_bytes()
        os._exit(1)


def batch_loader(
    dataset: BatchDataset,
    order: BatchOrder,
    *,
    epochs: int,
    first_step: int = 0,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> Iterable[Batch]:
    """Return a loader over all batches of `epochs` epochs from `first_step` on."""
    index = _FromStep(order, epochs, first_step)
    stream = dataset.stream_targets
    if stream is not None:
        dataset = BatchDataset(dataset.read_images, _no_targets)
    loader: DataLoader[Batch] = DataLoader(
        dataset,
        batch_size=None,
        sampler=index,
        num_workers=num_workers,
        multiprocessing_context="forkserver" if num_workers else None,
        prefetch_factor=4 if num_workers else None,
        worker_init_fn=EndWithOwner() if num_workers else None,
        pin_memory=pin_memory,
        # Its own generator: otherwise starting a loader draws from the global one, and a resumed
        # run would go on with other dropout masks.
        generator=torch.Generator().manual_seed(0),
    )
    return loader if stream is None else _joined(loader, stream, index, pin_memory)


def _no_targets(rows: Rows, views: Rows) -> TargetBatch:
    return TargetBatch()


def _joined(
    loader: DataLoader[Batch],
    stream: StreamTargets,
    index: Iterable[BatchIndex],
    pin_memory: bool,
) -> Iterator[Batch]:
    with contextlib.closing(stream(index)) as targets:
        for target, batch in zip(targets, loader, strict=True):
            yield replace(batch, targets=target.pin_memory() if pin_memory else target)
