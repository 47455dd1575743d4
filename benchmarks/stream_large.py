"""Shuffled batches of soft labels from a store larger than memory, against a raw memmap.

`StoredSignals.stream` keeps a window of 64 MB of shards in memory: four of 262,144 rows, among
which `BatchOrder` shuffles. Beside it the same rows in the same order from raw files of fixed
records through `numpy.memmap`, which the page cache holds: the memmap reads memory, and the store
decompresses and decodes. One memmap has the stored codes and leaves decoding to somebody else; one
has what training reads, int64 and float32, four times as large.

Then the memory: stores of 10 and of 100 million rows are streamed, each in a process of its own,
and VmHWM is read at the end (`ru_maxrss` would not do: Linux carries that over exec). The shard
files are links to a few, each with a commit record that vouches for it in its place, so that every
byte is decompressed, checked and decoded. The list of rows to train on, 8 bytes a row, is told
apart.

    python benchmarks/stream_large.py
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from measure import Figure, benchmark_parser, interleaved, median_ratio, record
from stream import BATCH, BatchIndex, consume, label_schema, made_up, shuffled, stored_signals

from pipeline.store import SoftLabelStore, create_soft_labels, open_soft_labels
from pipeline.store.commit import shard_crc
from pipeline.store.layout import COMMITS, shard_files
from pipeline.store.row_reader import ShardCache

WINDOW_BYTES = 64 * 2**20
LAYOUT = (262_144, 16_384)
DISTINCT = 4
SIZES = (10**7, 10**8)


def repeated_store(path: Path, rows: int) -> SoftLabelStore:
    """Make a store whose shards hold the labels of a few, each under its own commit record."""
    schema = label_schema(rows, LAYOUT)
    store = create_soft_labels(path, schema)
    answers = [made_up(schema, LAYOUT[0], seed) for seed in range(DISTINCT)]
    commits = zarr.open_array(path / COMMITS, mode="r+")
    for shard in range(schema.num_shards):
        values = tuple(part[: len(store.shard_span(shard))] for part in answers[shard % DISTINCT])
        if shard < DISTINCT or len(values[0]) < LAYOUT[0]:
            store.write_shard(0, shard, *values)
            continue
        own, other = (shard_files(schema, path, 0, at) for at in (shard, shard % DISTINCT))
        crcs = []
        for array, part in zip(schema.stored_arrays, values, strict=True):
            own[array.name].parent.mkdir(parents=True, exist_ok=True)
            os.link(other[array.name], own[array.name])
            crcs.append(shard_crc(schema, array.name, 0, shard, part))
        commits[0, shard] = np.array([LAYOUT[0], *crcs], np.uint32)
    return store


def raw_files(store: SoftLabelStore, folder: Path) -> dict[str, list[np.memmap]]:
    """Write the store's labels as raw files, as stored and decoded, and return them mapped."""
    schema = store.schema
    mapped: dict[str, list[np.memmap]] = {"codes": [], "decoded": []}
    for shard in range(schema.num_shards):
        span = store.shard_span(shard)
        codes = store.read_shard(0, shard)
        for form, arrays in {"codes": codes, "decoded": store.decode(*codes)}.items():
            for at, values in enumerate(arrays):
                if shard == 0:
                    shape = (schema.num_rows, *values.shape[1:])
                    file = folder / f"{form}-{at}.raw"
                    mapped[form].append(np.memmap(file, values.dtype, "w+", shape=shape))
                mapped[form][at][span.start : span.stop] = values
    return mapped


def from_memmap(arrays: list[np.memmap], batches: Iterator[BatchIndex]) -> None:
    """Gather each batch from the mapped files, and make tensors of it."""
    consume(
        [torch.from_numpy(np.asarray(values.take(rows, axis=0))) for values in arrays]
        for rows, _ in batches
    )


def compared(folder: Path, rows: int, rounds: int) -> dict[str, Any]:
    """Return labels a second of both."""
    path = folder / "compared.zarr"
    raw = raw_files(repeated_store(path, rows), folder)
    store = open_soft_labels(path, cache=ShardCache(WINDOW_BYTES))
    signals = stored_signals(store, held=False)
    epoch = shuffled(rows, LAYOUT[0])
    cases = {
        "stream": lambda: consume(signals.stream(epoch())),
        "memmap of codes": lambda: from_memmap(raw["codes"], epoch()),
        "memmap of decoded": lambda: from_memmap(raw["decoded"], epoch()),
    }
    seconds = interleaved(cases, rounds=rounds)
    labels = rows // BATCH * BATCH
    return {
        "rows": rows,
        "labels_per_second": {
            name: round(labels / float(np.median(values))) for name, values in seconds.items()
        },
        "memmap_to_stream": {
            form: median_ratio(seconds, f"memmap of {form}", "stream") for form in raw
        },
    }


def peak(path: Path, shards: int) -> dict[str, float]:
    """Stream batches of an epoch and return the memory that it took, in MB."""
    store = open_soft_labels(path, cache=ShardCache(WINDOW_BYTES))
    signals = stored_signals(store, held=False)
    before = _status("VmRSS")
    epoch = shuffled(store.schema.num_rows, LAYOUT[0])
    rows_mb = _status("VmRSS") - before
    count = min(shards * LAYOUT[0], store.schema.num_rows) // BATCH
    started = time.perf_counter()
    consume(signals.stream(islice(epoch(), count)))
    seconds = time.perf_counter() - started
    peak_mb = _status("VmHWM")
    return {
        "labels": count * BATCH,
        "labels_per_second": round(count * BATCH / seconds),
        "start_mb": before,
        "peak_mb": peak_mb,
        "list_of_rows_mb": round(rows_mb, 1),
        "peak_without_list_mb": round(peak_mb - rows_mb, 1),
    }


def _status(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return round(int(line.split()[1]) / 1024, 1)
    raise RuntimeError(f"the kernel does not say {name}")


def memory(folder: Path, rows: tuple[int, ...], shards: int) -> dict[str, dict[str, float]]:
    """Return what streams of stores of different sizes took."""
    found = {}
    for count in rows:
        path = folder / f"{count}.zarr"
        repeated_store(path, count)
        command = [sys.executable, __file__, "--peak", str(path), "--shards", str(shards)]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
        found[str(count)] = json.loads(done.stdout)
    return found


def figures(found: dict[str, Any]) -> list[Figure]:
    """Return what the table of the suite shows."""
    small, large = found["memory"].values()
    return [
        *(
            Figure(
                what=f"stream of labels larger than memory (window 64 MB), against {name}",
                value=found["compared"]["memmap_to_stream"][form]["median"],
                must_be="at least",
                target=0.5,
                against=f"numpy memmap of {what}, same rows and order, in page cache",
                bound="decoding a third of the processor time, the gather of codes and reading "
                "shards a fifth each; next: two threads of Python, which get in each other's way",
            )
            for form, name, what in (
                ("codes", "raw codes", "the stored codes, not decoded"),
                ("decoded", "decoded arrays", "int64 ids and float32 values"),
            )
        ),
        Figure(
            what="peak memory of that stream, 100 million rows",
            value=large["peak_without_list_mb"] / small["peak_without_list_mb"],
            must_be="at most",
            target=1.1,
            against="the same with 10 million rows; neither counts the list of rows to train on",
            bound="the window and the shards that are being read; next: that list, 8 bytes a row",
        ),
    ]


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--rows", type=int, default=2**23, help="of the comparison")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peak", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--shards", type=int, default=2**20, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.peak is not None:
        print(json.dumps(peak(given.peak, given.shards)))
        return
    rows, rounds, shards = (2**21, 3, 40) if given.quick else (given.rows, given.rounds, 2**20)
    with tempfile.TemporaryDirectory() as name:
        found = {
            "window_mb": WINDOW_BYTES >> 20,
            "compared": compared(Path(name), rows, rounds),
            "memory": memory(Path(name), SIZES, shards),
        }
    record("stream_large", found, given.out / "stream_large.json", figures=figures(found))


if __name__ == "__main__":
    main()
