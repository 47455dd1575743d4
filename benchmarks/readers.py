"""Readers of whole shards of a store in place: zarr-python, ours, tensorstore, zarrs.

Every shard of `ids` and `gaps` of one view is read and decompressed, the crc32c of every chunk
verified by the reader, and the crc32c of the whole compared with the commit record, as training
does. `ours` is `pipeline.store.shard_bytes`, what `read_shard` uses; it takes one thread, and the
stream has two. zarrs and tensorstore are no dependencies of the project; what is not installed is
left out with a message.

    python benchmarks/readers.py
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from measure import benchmark_parser, interleaved, record
from stream_large import LAYOUT, repeated_store

from pipeline.store import SoftLabelStore
from pipeline.store.commit import shard_crc

Read = Callable[[str, slice], np.ndarray]


def by_zarr(store: SoftLabelStore) -> Read:
    """Read through zarr-python's arrays."""
    names = [array.name for array in store.schema.stored_arrays]
    arrays: dict[str, Any] = {
        name: zarr.open_array(store.path / name, mode="r", zarr_format=3) for name in names
    }
    return lambda name, rows: np.asarray(arrays[name][0, rows])


def by_zarrs(store: SoftLabelStore) -> Read:
    """Read through zarr-python's arrays with the codec pipeline of zarrs."""
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        return by_zarr(store)


def by_tensorstore(store: SoftLabelStore) -> Read:
    """Read through tensorstore, without a cache."""
    import tensorstore

    arrays = {
        array.name: tensorstore.open(
            {
                "driver": "zarr3",
                "kvstore": {"driver": "file", "path": str(store.path / array.name)},
            }
        ).result()
        for array in store.schema.stored_arrays
    }
    return lambda name, rows: np.asarray(arrays[name][0, rows].read().result())


def scan(store: SoftLabelStore, read: Read, commits: np.ndarray) -> None:
    """Read all shards and compare each with its record.

    Raises:
        RuntimeError: If one differs.
    """
    for shard in range(store.schema.num_shards):
        span = store.shard_span(shard)
        for at, array in enumerate(store.schema.stored_arrays, start=1):
            values = read(array.name, slice(span.start, span.stop))
            if shard_crc(store.schema, array.name, 0, shard, values) != commits[0, shard, at]:
                raise RuntimeError(f"shard {shard} of {array.name} differs")


def scan_ours(store: SoftLabelStore) -> None:
    """Read all shards as `StoredSignals` does."""
    for shard in range(store.schema.num_shards):
        store.read_shard(0, shard)


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--shards", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    shards, rounds = (4, 3) if given.quick else (given.shards, given.rounds)
    readers = {"zarr": by_zarr, "zarrs": by_zarrs, "tensorstore": by_tensorstore}
    missing = [name for name in readers if find_spec(name) is None]
    for name in missing:
        print(f"{name} is not installed, and left out", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        store = repeated_store(Path(folder) / "store.zarr", shards * LAYOUT[0])
        commits = store.commits
        cases: dict[str, Callable[[], None]] = {"ours": partial(scan_ours, store)}
        for name in readers.keys() - missing:
            cases[name] = partial(scan, store, readers[name](store), commits)
        processor: dict[str, list[float]] = {name: [] for name in cases}

        def timed(name: str) -> None:
            started = time.process_time()
            cases[name]()
            processor[name].append(time.process_time() - started)

        seconds = interleaved({name: partial(timed, name) for name in cases}, rounds=rounds)
    labels = shards * LAYOUT[0]
    record(
        "readers",
        {
            "labels": labels,
            "not_installed": missing,
            "million_labels_per_second": {
                name: round(labels / statistics.median(values) / 1e6, 2)
                for name, values in seconds.items()
            },
            "processor_seconds_per_million_labels": {
                name: round(1e6 * statistics.median(values) / labels, 4)
                for name, values in processor.items()
            },
        },
        given.out / "readers.json",
    )


if __name__ == "__main__":
    main()
