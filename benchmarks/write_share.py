"""Which share of labelling is compression and commit, for the smallest realistic teacher.

The teacher is a ResNet-18 on JPEG photographs at 224 pixels. The time inside `write_shard`, in the
threads that write beside the teacher, is added up and divided by the time of the whole labelling.
The shards are small (256 labels), so what a commit costs whatever it holds weighs more than it
would in a real store. The demo's teacher of 32 pixels is measured too, without a target.

    python benchmarks/write_share.py
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from label_overhead import FirstTeacher
from measure import Figure, benchmark_parser, record
from photographs import photo_project
from stages import DEMO

from pipeline.config import load_project
from pipeline.store import SoftLabelStore


class TimedStore:
    """A store that keeps how long each shard took to write."""

    def __init__(self, store: SoftLabelStore) -> None:
        self._store = store
        self.seconds: list[float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def write_shard(self, *arguments: Any) -> None:
        """Write a shard."""
        started = time.perf_counter()
        self._store.write_shard(*arguments)
        self.seconds.append(time.perf_counter() - started)


def measured(teacher: FirstTeacher, rounds: int) -> dict[str, Any]:
    """Return the share of each round, the first one not counted."""
    teacher.prepare()
    shares, shards = [], []
    for _ in range(rounds + 1):
        store = TimedStore(teacher.new_store())
        started = time.perf_counter()
        teacher.label(store)
        seconds = time.perf_counter() - started
        shares.append(round(sum(store.seconds) / seconds, 5))
        shards.append(round(1000 * statistics.median(store.seconds), 1))
    return {
        "labels": teacher.labels,
        "shards": len(store.seconds),
        "milliseconds_per_shard": shards[1:],
        "shares": shares[1:],
        "share": statistics.median(shares[1:]),
    }


def main() -> None:
    parser = benchmark_parser(__doc__)
    arguments = parser.parse_args()
    rounds, images = (2, 64) if arguments.quick else (5, 256)
    with tempfile.TemporaryDirectory() as folder:
        project = photo_project(Path(folder), images=images, num_classes=64)
        photos = measured(FirstTeacher(project), rounds)
    with tempfile.TemporaryDirectory() as folder:
        demo = load_project(DEMO, [f"workspace={folder}", "specialists.epochs=1"])
        glyphs = measured(FirstTeacher(demo), rounds)
    record(
        "write_share",
        {"photos": photos, "glyphs": glyphs},
        arguments.out / "write_share.json",
        figures=[
            Figure(
                what="write: compress and commit, of labelling with a ResNet-18 at 224 pixels",
                value=round(100 * photos["share"], 3),
                must_be="at most",
                target=2.0,
                unit="%",
                against="the whole labelling; with the demo's teacher of 32 pixels "
                f"{100 * glyphs['share']:.0f} % (no target)",
                bound="fsync, two thirds of a write; next the hand-over to zarr's thread and back",
            )
        ],
    )


if __name__ == "__main__":
    main()
