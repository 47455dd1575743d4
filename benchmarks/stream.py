"""Shuffled batches of soft labels as training gets them, against raw arrays and peers' layouts.

One view is in memory. Batches of 256 come in the order of `BatchOrder` through
`StoredSignals.stream`, which `train_student` reads: rows, hard labels, global ids, log
probabilities and tails, decoded, as tensors. A label is one (row, view) pair, K = 16. Three epochs
follow one another in a round, as they do in training: while the next one is shuffled, threads fetch
what is left of the last.

What is held in memory was decoded when it was read: 100 bytes a label. Beside it, in turn: numpy
`take` of the stored codes, half as large, which leaves decoding to somebody else, and of decoded
int64 and float32 arrays, twice as large; a reader of TinyViT's layout (one file of
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
from typing import Any

import numpy as np
import torch
from measure import Figure, benchmark_parser, interleaved, median_ratio, record
from peer_layouts import FKD_VIEWS, read_fkd, read_tinyvit, write_fkd, write_tinyvit

from pipeline.data.epoch_order import BatchOrder
from pipeline.objectives.stored_signals import StoredSignals
from pipeline.store import SoftLabelStore, create_soft_labels, shard_layout
from storage_schemas.soft_labels import SoftLabelSchema

K, CLASSES, BATCH, EPOCHS = 16, 1_000, 256, 3

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

    def epochs() -> Iterator[BatchIndex]:
        return itertools.chain.from_iterable(epoch() for _ in range(EPOCHS))

    labels = EPOCHS * (rows // BATCH * BATCH)
    cases: dict[str, tuple[int, Callable[[], None]]] = {
        "stream": (labels, lambda: consume(signals.stream(epochs()))),
        "batch by batch": (labels, lambda: consume(signals.fetch(*batch) for batch in epochs())),
        "take of codes": (labels, lambda: take(arrays["codes"], epochs())),
        "take of decoded": (labels, lambda: take(arrays["decoded"], epochs())),
        "order alone": (labels, lambda: consume(epochs())),
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
        "the gather with int64 ids, and the tensors of each batch, a third of the processor time "
        "each; the shuffle, on the thread that asks for batches, the last"
    )
    take_bound = "as above: take has the same shuffle, and neither int64 ids nor batches"
    peer_bound = "Python and system calls for every label, which the stream has for 32,768"
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
                    "numpy take of int64 ids and float32 values, twice the memory",
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
