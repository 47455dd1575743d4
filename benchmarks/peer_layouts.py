"""Labels in the layouts of two peers, written and read as those do.

In: one file of fixed records (TinyViT, github.com/microsoft/Cream), a `torch.save` file an image
(FKD, github.com/szq0214/FKD), both made from a label store. Left out: their views and losses. Both
are written from the description of the layout.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipeline.store import SoftLabelStore

K = 16
FKD_VIEWS = 4
TINYVIT_RECORD = np.dtype([("seed", "<i4"), ("ids", "<u2", K), ("p", "<f2", K)])


def write_tinyvit(store: SoftLabelStore, file: Path) -> None:
    """Write one record for each row: seed, ids, probabilities as float16."""
    rows = np.arange(store.schema.num_rows)
    found = store.fetch(rows, np.zeros_like(rows))
    records = np.zeros(len(rows), TINYVIT_RECORD)
    records["seed"], records["ids"], records["p"] = rows, found.ids, np.exp(found.log_probs)
    records.tofile(file)


class TinyViTRecords(Dataset[tuple[np.ndarray, ...]]):
    """A label by its row: the row's key, the place of that key, a seek, a read."""

    def __init__(self, file: BinaryIO, rows: int) -> None:
        self._file = file
        self._places = {str(row): row for row in range(rows)}

    def __getitem__(self, row: int) -> tuple[np.ndarray, ...]:
        self._file.seek(self._places[str(row)] * TINYVIT_RECORD.itemsize)
        data = self._file.read(TINYVIT_RECORD.itemsize)
        seed = np.frombuffer(data, np.int32, count=1)
        ids = np.frombuffer(data, np.int16, count=K, offset=4)
        return seed, ids.astype(np.int64), np.frombuffer(data, np.float16, offset=4 + 2 * K)


def read_tinyvit(file: Path, rows: int, batches: list[np.ndarray], *, bare: bool) -> None:
    """Read batches as its data set does, collated by the loader; `bare`: by numpy alone."""
    with file.open("rb") as opened:
        records = TinyViTRecords(opened, rows)
        if not bare:
            index = [batch.tolist() for batch in batches]
            deque(DataLoader(records, batch_sampler=index), maxlen=0)
            return
        for batch in batches:
            for part in zip(*(records[row] for row in batch.tolist()), strict=True):
                torch.from_numpy(np.stack(part))


def write_fkd(store: SoftLabelStore, folder: Path, images: int) -> None:
    """Write one file for each of some images: boxes, flips, and (views, 2, K) ids and values."""
    folder.mkdir()
    rows = np.arange(images)
    found = store.fetch(rows, np.zeros_like(rows))
    values = np.stack([found.ids.astype(np.float32), np.exp(found.log_probs)], axis=1)
    for row in rows.tolist():
        label = torch.from_numpy(values[row]).half().expand(FKD_VIEWS, 2, K).clone()
        content = [torch.rand(FKD_VIEWS, 4), torch.zeros(FKD_VIEWS), label]
        torch.save(content, folder / f"{row}.tar")


def read_fkd(folder: Path, batches: Iterable[np.ndarray]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (ids, probabilities) of batches of images, all views of each from one open file."""
    for images in batches:
        labels = [
            torch.load(folder / f"{row}.tar", weights_only=True)[2].float()
            for row in images.tolist()
        ]
        both = torch.cat(labels)
        yield both[:, 0].long(), both[:, 1]
