"""How fast `concentrate inspect` counts 10.5 million labels, and in how much memory.

The store holds realistic codes (`realistic_logits.py`), those of one shard in every shard, in a
workspace with a manifest. Taken in turn in one process: a bare loop that reads `ids` with zarr and
counts the first ranks; the exact pass of `inspect_store` (the same counts, checked against the
commit records, with agreement and confusions); and all of `inspect_store`, with about a million
labels decoded. The whole verb is timed in a process of its own, whose peak memory is measured.
Exit code 1 when the exact pass counts fewer than 20 million labels a second, or the verb takes more
than 1 GiB.

    python benchmarks/inspect_speed.py
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import zarr
from measure import interleaved, median_ratio, record
from realistic_logits import CLASSES, train_teacher

from pipeline.data.manifest_files import save
from pipeline.numerics import sparsify
from pipeline.store import create_soft_labels, inspect_store, shard_layout
from storage_schemas.label_space import LabelSpace
from storage_schemas.manifest import Manifest
from storage_schemas.soft_labels import SoftLabelSchema, encode

K = 16
FEWEST_PER_SECOND = 20e6
MOST_BYTES = 2**30
BLOCK_ROWS = 8_192
# Linux keeps the largest ru_maxrss over an exec: a child would inherit that of this process.
VERB = """
import resource, sys
from pathlib import Path
from flows.cli import app

try:
    app()
finally:
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        print(int(lines["VmHWM"].split()[0]) * 1024, file=sys.stderr)
    else:
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
"""


def write_store(workspace: Path, rows: int, views: int) -> Path:
    """Write the store and its manifest, and return the store's path."""
    generator = torch.Generator().manual_seed(1)
    teacher = train_teacher(0)
    shard_rows, chunk_rows = shard_layout(rows)
    samples, truth = teacher.samples(shard_rows, generator)
    labels = np.resize(truth.numpy(), rows).astype(np.int32)
    space = LabelSpace(classes=tuple(f"v{at % 10}/{at}" for at in range(CLASSES)))
    manifest = Manifest.empty().appended(
        keys=(f"{row:08d}.png" for row in range(rows)),
        labels=labels,
        splits=np.zeros(rows, np.uint8),
        digests=np.zeros((rows, 16), np.uint8),
    )
    save(workspace, manifest, space, {}, {})
    schema = SoftLabelSchema(
        teacher="c1000",
        num_rows=rows,
        num_views=views,
        k=K,
        num_classes=CLASSES,
        shard_rows=shard_rows,
        chunk_rows=chunk_rows,
        classes=space.classes,
        global_ids=tuple(range(CLASSES)),
        manifest_chain=manifest.digest,
        manifest_rows=rows,
        fingerprint_parts={"benchmark": "inspect_speed"},
    )
    path = workspace / "labels" / "c1000" / f"{schema.fingerprint}.zarr"
    store = create_soft_labels(path, schema)
    ids, gaps = store.empty_shard()
    for at in range(0, shard_rows, BLOCK_ROWS):
        block = slice(at, at + BLOCK_ROWS)
        found = sparsify(teacher.answers(samples[block], generator), K, schema.temperatures)
        ids[block], gaps[block] = encode(
            schema, found.ids.numpy(), found.logits.numpy(), found.log_tail_ratio.numpy()
        )
    for view, shard in np.ndindex(views, schema.num_shards):
        size = len(store.shard_span(shard))
        store.write_shard(view, shard, ids[:size], gaps[:size])
    return path


def bare_loop(path: Path) -> None:
    """Count the first ranks with zarr and numpy, a shard a read."""
    array = zarr.open_array(path / "ids", mode="r")
    counts = np.zeros(CLASSES, np.int64)
    for view in range(array.shape[0]):
        for first in range(0, array.shape[1], array.shards[1]):
            ids = array[view, first : first + array.shards[1]]
            counts += np.bincount(ids[:, 0], minlength=CLASSES)


def run_verb(path: Path) -> tuple[float, int]:
    """Run the whole verb as a user does and return its wall seconds and peak bytes."""
    started = time.perf_counter()
    line = [sys.executable, "-c", VERB, "inspect", path, "--json"]
    done = subprocess.run(line, check=True, capture_output=True, text=True)
    return time.perf_counter() - started, int(done.stderr.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_310_720)
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    labels = arguments.rows * arguments.views
    with tempfile.TemporaryDirectory() as folder:
        path = write_store(Path(folder), arguments.rows, arguments.views)
        verb, peak = run_verb(path)
        summary = inspect_store(path)
        seconds = interleaved(
            {
                "bare_loop": lambda: bare_loop(path),
                "exact": lambda: inspect_store(path, sampled_labels=0),
                "inspect": lambda: inspect_store(path),
            },
            rounds=arguments.rounds,
        )
    speed = {name: labels / statistics.median(times) for name, times in seconds.items()}
    targets = {
        f"at least {FEWEST_PER_SECOND / 1e6:g} M labels a second": (
            speed["exact"] >= FEWEST_PER_SECOND
        ),
        "memory of the verb at most 1 GiB": peak <= MOST_BYTES,
    }
    record(
        "inspect_speed",
        {
            "labels": labels,
            "sampled": summary.sampled,
            "agreement": summary.agreement,
            "ids_bytes_per_label": round(summary.ids_bytes, 3),
            "million_labels_per_second": {
                name: round(value / 1e6, 2) for name, value in speed.items()
            },
            "ratio_exact_to_bare_loop": median_ratio(seconds, "bare_loop", "exact"),
            "verb_seconds": round(verb, 2),
            "verb_peak_bytes": peak,
            "targets": targets,
        },
    )
    if not all(targets.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
