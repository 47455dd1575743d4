"""A store with room for a billion rows: opened, planned, resumed, checked, streamed.

The manifest is not: its rows are in memory, so what a row takes there is measured on a million.

The store is one of a hundred teachers of 1,000 classes each: it labels a hundredth of the rows, and
a few of its shards are really written. Each part runs in a process of its own; the memory of a step
is the kernel's high-water mark (VmHWM), set back before the step. `ru_maxrss` would not do: Linux
carries that over exec.

    python benchmarks/billion_rows.py
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from measure import Figure, benchmark_parser, peak_mb, record

from pipeline.data.epoch_order import BatchOrder
from pipeline.data.manifest_files import load_manifest, save
from pipeline.store import (
    SoftLabelStore,
    create_soft_labels,
    inspect_store,
    open_soft_labels,
    shard_layout,
    verify_store,
)
from pipeline.store.coverage import missing_labels
from storage_schemas.label_space import LabelSpace
from storage_schemas.manifest import DIGEST_BYTES, TRAIN, Manifest
from storage_schemas.soft_labels import SoftLabelSchema

TEACHERS, CLASSES, K = 100, 100_000, 16
BATCH = 256
MANIFEST_ROWS = 10**6
TARGET_SECONDS, TARGET_BYTES = 2.0, 300 * 2**20
NONE = np.zeros(0, np.int64)


def store_schema(rows: int, views: int) -> SoftLabelSchema:
    """Return the schema of the teacher in the middle."""
    classes = CLASSES // TEACHERS
    first = TEACHERS // 2 * classes
    shard_rows, chunk_rows = shard_layout(rows)
    return SoftLabelSchema(
        teacher="middle",
        num_rows=rows,
        num_views=views,
        k=K,
        num_classes=classes,
        shard_rows=shard_rows,
        chunk_rows=chunk_rows,
        classes=tuple(f"middle/{i}" for i in range(classes)),
        global_ids=tuple(range(first, first + classes)),
        fingerprint_parts={"rows": rows},
    )


def teacher_rows(schema: SoftLabelSchema) -> np.ndarray:
    """Return the rows that the teacher labels: one run, since rows are sorted by vertical."""
    size = schema.num_rows // TEACHERS
    return np.arange(TEACHERS // 2 * size, (TEACHERS // 2 + 1) * size)


def write_one(store: SoftLabelStore, view: int, shard: int) -> None:
    """Write the teacher's rows of one shard, with made-up answers."""
    rng = np.random.default_rng((view, shard))
    ids, gaps = store.empty_shard()
    rows = teacher_rows(store.schema)
    span = store.shard_span(shard)
    inside = rows[slice(*np.searchsorted(rows, [span.start, span.stop]))] - span.start
    # 37 is prime to the number of classes, so the ids of a row differ.
    first = rng.integers(0, store.schema.num_classes, (len(inside), 1))
    ids[inside] = (first + 37 * np.arange(K)) % store.schema.num_classes
    gaps[inside] = rng.integers(0, 64, (len(inside), store.schema.columns))
    store.write_shard(view, shard, ids, gaps)


class Steps:
    """Seconds and peak memory of each step of this process."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, float]] = {"start": {"peak_mb": peak_mb()}}

    def run(self, name: str, step: Callable[[], Any]) -> Any:
        """Run a step and return what it returns."""
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins at what is held now
        started = time.perf_counter()
        value = step()
        seconds = round(time.perf_counter() - started, 3)
        self.found[name] = {"seconds": seconds, "peak_mb": peak_mb()}
        print(f"  {name}: {self.found[name]}", file=sys.stderr)
        return value


def first_places(schema: SoftLabelSchema, shards: int) -> list[tuple[int, int]]:
    """Return the places of the first shards of the teacher, in all views."""
    first = int(teacher_rows(schema)[0]) // schema.shard_rows
    return [(view, first + at) for at in range(shards) for view in range(schema.num_views)]


def create(path: Path, rows: int, views: int, shards: int) -> dict[str, Any]:
    """Make the store and write its first shards."""
    steps = Steps()
    schema = store_schema(rows, views)
    store = steps.run("create", lambda: create_soft_labels(path, schema))
    places = first_places(schema, shards)
    steps.run("write", lambda: [write_one(store, *place) for place in places])
    steps.found["write"]["shards"] = len(places)
    return {"steps": steps.found}


def resume(path: Path, shards: int, batches: int) -> dict[str, Any]:
    """Do what a process does that finds the store."""
    steps = Steps()
    store = steps.run("open", lambda: open_soft_labels(path))
    schema = store.schema

    def plan() -> list[tuple[int, int]]:
        return missing_labels(store, teacher_rows(schema), NONE)

    missing = steps.run("plan", plan)
    steps.run("write a shard", lambda: write_one(store, *missing[0]))
    left = steps.run("reopen and plan", lambda: missing_labels(
        open_soft_labels(path), teacher_rows(schema), NONE
    ))  # fmt: skip
    problems = steps.run("verify quick", lambda: verify_store(store, "quick"))
    summary = steps.run("inspect", lambda: inspect_store(path, sampled_labels=100_000))
    rows = teacher_rows(schema)
    order = BatchOrder(
        rows=rows, batch_size=BATCH, views=schema.num_views, seed=0, shard_rows=schema.shard_rows
    )
    steps.run("first batch of all its rows", lambda: next(order.batches(0)))
    end = (first_places(schema, shards)[-1][1] + 1) * schema.shard_rows
    order = BatchOrder(
        rows=rows[: np.searchsorted(rows, end)].copy(),
        batch_size=BATCH,
        views=schema.num_views,
        seed=0,
        shard_rows=schema.shard_rows,
    )
    del rows

    def stream(count: int) -> None:
        for batch, views in islice(order.batches(0), count):
            store.fetch(batch, views)

    steps.run("stream: shards into memory", lambda: stream(1))
    steps.run("stream", lambda: stream(batches))
    steps.found["stream"]["labels"] = BATCH * batches
    return {
        "steps": steps.found,
        "shards": {
            "of_the_store": schema.num_views * schema.num_shards,
            "of_the_teacher": len(missing) + schema.num_views * shards,
            "missing": len(missing),
            "missing_after_one_more": len(left),
        },
        "labels": summary.labels,
        "problems": [*problems, *summary.problems],
    }


def write_manifest(workspace: Path, rows: int) -> dict[str, Any]:
    """Write a manifest whose keys are as long as paths of images are."""
    manifest = Manifest.empty().appended(
        keys=(f"images/middle/class_0000/{i:011d}.jpg" for i in range(rows)),
        labels=np.zeros(rows, np.int32),
        splits=np.zeros(rows, np.uint8),
        digests=np.random.default_rng(0).integers(0, 256, (rows, DIGEST_BYTES)).astype(np.uint8),
    )
    save(workspace, manifest, LabelSpace(classes=("middle/0",)), {}, {})
    size = sum(file.stat().st_size for file in workspace.rglob("*") if file.is_file())
    return {"file_bytes_per_row": round(size / rows, 1)}


def read_manifest(workspace: Path, rows: int) -> dict[str, Any]:
    """Load the manifest, as every process that plans, labels or trains does."""
    steps = Steps()
    steps.run("load a small one", lambda: load_manifest(workspace / "small"))
    before = psutil.Process().memory_info().rss
    manifest = steps.run("load", lambda: load_manifest(workspace))
    held = psutil.Process().memory_info().rss - before
    steps.run("rows of a class", lambda: manifest.rows(TRAIN))
    return {
        "rows": rows,
        "bytes_per_row": round(held / rows, 1),
        "peak_bytes_per_row": round((steps.found["load"]["peak_mb"] * 2**20 - before) / rows, 1),
        "seconds_per_million_rows": round(1e6 * steps.found["load"]["seconds"] / rows, 3),
    }


def part(name: str, *arguments: object) -> dict[str, Any]:
    """Run a part in a process of its own."""
    command = [sys.executable, __file__, "--part", json.dumps([name, *map(str, arguments)])]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout)


def measured(
    folder: Path, rows: int, views: int, shards: int, batches: int, manifest_rows: int
) -> dict[str, Any]:
    """Return all figures."""
    path = folder / "middle.zarr"
    made = part("create", path, rows, views, shards)
    found = part("resume", path, shards, batches)
    steps = found["steps"]
    made_manifest = part("write_manifest", folder / "workspace", manifest_rows)
    part("write_manifest", folder / "workspace" / "small", 100)
    read = part("read_manifest", folder / "workspace", manifest_rows)
    chosen = [steps[name] for name in ("open", "plan", "write a shard")]
    seconds = round(sum(step["seconds"] for step in chosen), 3)
    peak = max(step["peak_mb"] for step in chosen)
    return {
        "rows": rows,
        "views": views,
        "teachers": TEACHERS,
        "classes": CLASSES,
        "create": made["steps"],
        "resume": found,
        "manifest": read | made_manifest,
        "open_plan_resume": {"seconds": seconds, "peak_mb": peak},
        "targets": {
            f"open, plan and resume under {TARGET_SECONDS:.0f} s": seconds < TARGET_SECONDS,
            "and under 300 MB": peak * 2**20 < TARGET_BYTES,
        },
    }


def figures(found: dict[str, Any]) -> list[Figure]:
    """Return what the table of the suite shows."""
    did = found["open_plan_resume"]
    places = found["resume"]["shards"]["of_the_store"]
    against = f"none: an absolute figure, {places:,} places of shards, most of them empty"
    bound = "compressing and syncing the one shard that is written; next: listing what is there"
    seconds, megabytes = TARGET_SECONDS, TARGET_BYTES / 2**20
    return [
        Figure(
            what=f"open, plan and resume a store of {found['rows']:,} rows: {what}",
            value=value,
            must_be="at most",
            target=target,
            unit=unit,
            against=against,
            bound=bound,
        )
        for what, value, target, unit in (
            ("time", did["seconds"], seconds, "s"),
            ("peak memory", did["peak_mb"], megabytes, "MB"),
        )
    ]


def run_part(words: str) -> None:
    """Run a part in this process and print what it found."""
    name, path, *numbers = json.loads(words)
    parts = (create, resume, write_manifest, read_manifest)
    work = next(function for function in parts if function.__name__ == name)
    print(json.dumps(work(Path(path), *map(int, numbers))))


def main() -> None:
    if sys.argv[1:2] == ["--part"]:
        run_part(sys.argv[2])
        return
    parser = benchmark_parser(__doc__)
    parser.add_argument("--rows", type=int, default=10**9)
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--shards", type=int, default=3, help="of the teacher, really written")
    parser.add_argument("--batches", type=int, default=400)
    given = parser.parse_args()
    shards, batches = (1, 50) if given.quick else (given.shards, given.batches)
    manifest_rows = MANIFEST_ROWS // 10 if given.quick else MANIFEST_ROWS
    with tempfile.TemporaryDirectory() as folder:
        found = measured(Path(folder), given.rows, given.views, shards, batches, manifest_rows)
    record("billion_rows", found, given.out / "billion_rows.json", figures=figures(found))


if __name__ == "__main__":
    main()
