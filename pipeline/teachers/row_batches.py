"""The pixels that a teacher sees: all wanted views of a batch of rows, each image decoded once."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipeline.config import Project
from pipeline.data.loader import EndWithOwner
from pipeline.data.view_reader import ViewReader
from pipeline.teachers.spec import TeacherSpec


class _RowBatches(Dataset[Tensor]):
    def __init__(self, reader: ViewReader, views: Sequence[int]) -> None:
        self.reader, self.views = reader, np.array(views, np.int64)

    def __getitem__(self, rows: npt.NDArray[np.int64]) -> Tensor:
        """Return (views, B, channels, S, S) for (B,) rows, each image decoded once."""
        m = len(self.views)
        pixels = self.reader.read(np.repeat(rows, m), np.tile(self.views, len(rows)))
        return pixels.reshape(len(rows), m, *pixels.shape[1:]).transpose(0, 1)


def row_batches(
    project: Project,
    reader: ViewReader,
    spec: TeacherSpec,
    rows: npt.NDArray[np.int64],
    views: Sequence[int],
    device: torch.device,
) -> Iterator[Tensor]:
    """Yield (views, B, channels, S, S) pixels of rows in batches of the teacher's size."""
    size = spec.config.batch_size
    batches = [rows[start : start + size] for start in range(0, len(rows), size)]
    workers = min(project.runtime.num_workers, len(batches))
    if multiprocessing.current_process().daemon:
        workers = 0  # a Dask worker may start no process: more of them decode, each for itself
    yield from DataLoader(
        _RowBatches(reader, views),
        batch_size=None,
        sampler=batches,
        num_workers=workers,
        multiprocessing_context="forkserver" if workers else None,
        worker_init_fn=EndWithOwner() if workers else None,
        pin_memory=device.type == "cuda",
    )
