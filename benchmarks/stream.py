"""Shuffled batches of soft labels as training gets them, against raw arrays and peers' layouts.

One view is in memory. Batches of 256 come in the order of `BatchOrder` through
`StoredSignals.stream`, which `train_student` reads: rows, hard labels, global ids, log
probabilities and tails, decoded, as tensors. A label is one (row, view) pair, K = 16.

Beside it, in turn: numpy `take` of the stored codes, which leaves decoding to somebody else, and
of arrays that were decoded before, four times as large; a reader of TinyViT's layout (one file of
fixed records, a seek and a read a sample); and one of FKD's (a file of `torch.save` an image, its
coordinates, flips, ids and values).

    python benchmarks/stream.py
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from measure import Figure, benchmark_parser, interleaved, median_ratio, record
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipeline.data.epoch_order import BatchOrder
from pipeline.objectives.stored_signals import StoredSignals
from pipeline.store import SoftLabelStore, create_soft_labels, shard_layout
from storage_schemas.soft_labels import SoftLabelSchema

K, CLASSES, BATCH = 16, 1_000, 256
FKD_VIEWS = 4
TINYVIT_RECORD = np.dtype([("seed", "<i4"), ("ids", "<u2", K), ("p", "<f2", K)])

BatchIndex = tuple[np.ndarray, np.ndarray]


def label_schema(rows: int, layout: tuple[int, int] | None = None) -> SoftLabelSchema:
    """Return the schema of one teacher of all classes, with one view."""
    shard_rows, chunk_rows = layout or shard_layout(rows)
    return SoftLabelSchema(
        teacher="all",
        num_rows=rows,
        num_views=1,
        k=K,
        num_classes=CLASSES,
        shard_rows=shard_rows,
        chunk_rows=chunk_rows,
        classes=tuple(f"all/{at}" for at in range(CLASSES)),
        global_ids=tuple(range(CLASSES)),
        fingerprint_parts={"rows": rows},
    )


def label_store(path: Path, rows: int) -> SoftLabelStore:
    """Write a store with made-up answers."""
    store = create_soft_labels(path, label_schema(rows))
    for shard in range(store.schema.num_shards):
        answers = made_up(store.schema, len(store.shard_span(shard)), seed=shard)
        store.write_shard(0, shard, *answers)
    return store


def made_up(schema: SoftLabelSchema, rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return stored ids and gaps of some rows, of about the entropy of a real teacher's."""
    rng = np.random.default_rng(seed)
    # 37 is prime to the number of classes, so the ids of a row differ.
    ids = (rng.integers(0, CLASSES, (rows, 1)) + 37 * rng.permuted(
        np.tile(np.arange(K), (rows, 1)), axis=1
    )) % CLASSES  # fmt: skip
    gaps = np.minimum(rng.geometric(0.04, (rows, schema.columns)), 250)
    return ids.astype(schema.ids_dtype), gaps.astype(schema.gaps_dtype)


def stored_signals(store: SoftLabelStore, *, held: bool) -> StoredSignals:
    """Return what training reads a store through, one teacher for all classes."""
    rows = np.arange(store.schema.num_rows)
    return StoredSignals(
        np.zeros(len(rows), np.int32),
        stores=[store],
        routes=np.ones((CLASSES + 1, 1), bool),
        held_rows=rows if held else None,
    )


def shuffled(rows: int, shard_rows: int | None = None) -> Callable[[], Iterator[BatchIndex]]:
    """Return a function that begins the next epoch of a run."""
    order = BatchOrder(
        rows=np.arange(rows), batch_size=BATCH, views=1, seed=0, shard_rows=shard_rows
    )
    epochs = itertools.count()
    return lambda: order.batches(next(epochs))


def consume(batches: Iterable[object]) -> None:
    """Go through an iterator and keep nothing."""
    deque(batches, maxlen=0)


# --- the peers, written from the descriptions of their layouts --------------------------------


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
            consume(DataLoader(records, batch_sampler=index))
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


# --- measuring ---------------------------------------------------------------------------------


def raw_arrays(store: SoftLabelStore) -> dict[str, tuple[np.ndarray, ...]]:
    """Return all labels of the store, as stored and decoded."""
    rows = np.arange(store.schema.num_rows)
    codes = store.fetch_quantised(rows, np.zeros_like(rows))
    return {"codes": codes, "decoded": store.decode(*codes)}


def take(arrays: tuple[np.ndarray, ...], batches: Iterable[BatchIndex]) -> None:
    """Gather each batch from arrays in memory, and make tensors of it."""
    consume(
        [torch.from_numpy(values.take(rows, axis=0)) for values in arrays] for rows, _ in batches
    )


def peer_cases(
    store: SoftLabelStore, folder: Path, count: int
) -> dict[str, tuple[int, Callable[[], None]]]:
    """Write the peers' files; return how many labels each case reads, and the case."""
    rows = store.schema.num_rows
    write_tinyvit(store, folder / "tinyvit.bin")
    images = min(count * BATCH // FKD_VIEWS, rows)
    write_fkd(store, folder / "fkd", images)
    some = [batch for batch, _ in itertools.islice(shuffled(rows)(), count)]
    of_images = np.random.default_rng(0).permutation(images)
    files = np.split(of_images, np.arange(BATCH // FKD_VIEWS, images, BATCH // FKD_VIEWS))

    def tinyvit(*, bare: bool) -> None:
        read_tinyvit(folder / "tinyvit.bin", rows, some, bare=bare)

    return {
        "TinyViT": (count * BATCH, lambda: tinyvit(bare=False)),
        "TinyViT, bare": (count * BATCH, lambda: tinyvit(bare=True)),
        "FKD": (images * FKD_VIEWS, lambda: consume(read_fkd(folder / "fkd", files))),
    }


def measured(folder: Path, rows: int, rounds: int, peer_batches: int) -> dict[str, Any]:
    """Return labels a second of every case, and how many times faster the stream is."""
    store = label_store(folder / "store.zarr", rows)
    signals = stored_signals(store, held=True)
    arrays = raw_arrays(store)
    epoch = shuffled(rows)
    labels = rows // BATCH * BATCH
    cases: dict[str, tuple[int, Callable[[], None]]] = {
        "stream": (labels, lambda: consume(signals.stream(epoch()))),
        "batch by batch": (labels, lambda: consume(signals.fetch(*batch) for batch in epoch())),
        "take of codes": (labels, lambda: take(arrays["codes"], epoch())),
        "take of decoded": (labels, lambda: take(arrays["decoded"], epoch())),
        "order alone": (labels, lambda: consume(epoch())),
        **peer_cases(store, folder, peer_batches),
    }
    processor: dict[str, list[float]] = {name: [] for name in cases}

    def timed(name: str) -> None:
        started = time.process_time()
        cases[name][1]()
        processor[name].append(time.process_time() - started)

    seconds = interleaved({name: partial(timed, name) for name in cases}, rounds=rounds)
    each = {
        name: [value / labels for value in seconds[name]] for name, (labels, _) in cases.items()
    }
    return {
        "rows": rows,
        "k": K,
        "batch_size": BATCH,
        "labels_per_second": {
            name: round(1 / statistics.median(values)) for name, values in each.items()
        },
        "processor_microseconds_per_batch": {
            name: round(1e6 * BATCH * statistics.median(processor[name]) / labels, 1)
            for name, (labels, _) in cases.items()
        },
        "stream_times": {name: median_ratio(each, name, "stream") for name in each},
    }


def figures(found: dict[str, Any]) -> list[Figure]:
    """Return what the table of the suite shows."""
    times = {name: ratio["median"] for name, ratio in found["stream_times"].items()}
    bound = (
        "decoding and class ids, two fifths of the processor time; next: the gather and the "
        "shuffle, a fifth each, then six tensors a batch"
    )
    take_bound = "decoding, which take leaves out; next: the gather, equal on both sides"
    peer_bound = "Python and system calls for every label, which the stream has for 8,192"
    return [
        Figure(
            what="labels streamed to shuffled batches of 256, view in memory",
            value=found["labels_per_second"]["stream"] / 1e6,
            must_be="at least",
            target=10.0,
            unit="million/s",
            against="none: an absolute figure, all cores",
            bound=bound,
        ),
        *(
            Figure(
                what=f"stream of labels against {name}",
                value=times[case],
                must_be="at least",
                target=target,
                against=against,
                bound=why,
            )
            for name, case, target, against, why in (
                (
                    "take of raw arrays",
                    "take of codes",
                    0.5,
                    "numpy take of the stored codes in the same order, not decoded, one thread",
                    take_bound,
                ),
                (
                    "take of decoded arrays",
                    "take of decoded",
                    0.5,
                    "numpy take of int64 ids and float32 values, four times the memory",
                    bound,
                ),
                (
                    "a seek reader",
                    "TinyViT",
                    100.0,
                    "TinyViT's layout: a seek and a read a label, collated by its loader",
                    peer_bound,
                ),
                (
                    "a file an image",
                    "FKD",
                    100.0,
                    "FKD's layout: torch.load a file, four views of each, stacked",
                    peer_bound,
                ),
            )
        ),
    ]


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--rows", type=int, default=1_280_000)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    rows, rounds = (400_000, 3) if arguments.quick else (arguments.rows, arguments.rounds)
    with tempfile.TemporaryDirectory() as folder:
        found = measured(Path(folder), rows, rounds, peer_batches=40)
    record("stream", found, arguments.out / "stream.json", figures=figures(found))


if __name__ == "__main__":
    main()
