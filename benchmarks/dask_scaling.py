"""How much faster two Dask workers label than one, one thread each.

The whole label flow runs, with a Prefect server of its own, on two clusters of this machine that
are kept up: what is compared is labelling, not how long Python takes to import torch. A ResNet-18
labels JPEG photographs at 64 pixels; the stores are removed before each run. `labelling` is the
time from the creation of the store to its last commit record, `run` that of the whole flow with
its fixed seconds of Prefect, and `tasks` the time that workers spend in tasks, over their number:
what is left of a run that is long.

    python benchmarks/dask_scaling.py
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path

import torch
from label_overhead import photo_project
from measure import interleaved, median_ratio, record

from flows.environment import prepare_environment
from pipeline.cluster import cluster_address
from pipeline.config import RuntimeConfig


def labelling_seconds(labels: Path) -> float:
    """From the creation of the largest store to its last commit record."""
    stores = {
        store: list((store / "commits" / "c").rglob("*")) for store in labels.glob("*/*.zarr")
    }
    store, records = max(stores.items(), key=lambda item: len(item[1]))
    last = max(path.stat().st_mtime for path in records if path.is_file())
    return last - (store / "zarr.json").stat().st_mtime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--photos", type=int, default=4096, help="at least 200")
    parser.add_argument("--size", type=int, default=64, help="pixels of the teacher's input")
    parser.add_argument("--shards", type=int, default=16)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name, ExitStack() as clusters:
        folder = Path(name)
        photo_project(folder, arguments.photos)
        workspace = folder / "work"
        prepare_environment(workspace)
        from flows.label_teachers import label_teachers

        rows = -(-arguments.photos // arguments.shards)
        settings = [
            f"teachers.photos.input={{size: {arguments.size}}}",
            f"labels.shard_rows={rows}",
            f"labels.chunk_rows={rows}",
            "runtime.device=cpu",
            "runtime.runner=dask",
        ]
        addresses = {
            workers: clusters.enter_context(
                cluster_address(RuntimeConfig(runner="dask", workers=workers))
            )
            for workers in (1, 2)
        }
        inside: dict[str, list[float]] = {}
        working: dict[str, list[float]] = {}
        tasks: dict[str, int] = {}

        def label(workers: int) -> None:
            found = label_teachers(
                str(folder / "project.yaml"), [*settings, f"runtime.address={addresses[workers]}"]
            )
            case = f"workers_{workers}"
            inside.setdefault(case, []).append(labelling_seconds(workspace / "labels"))
            working.setdefault(case, []).append(sum(task["seconds"] for task in found) / workers)
            tasks[case] = len(found)

        seconds = interleaved(
            {"workers_1": lambda: label(1), "workers_2": lambda: label(2)},
            rounds=arguments.rounds,
            before=lambda: shutil.rmtree(workspace / "labels", ignore_errors=True),
        )
    inside = {case: times[-arguments.rounds :] for case, times in inside.items()}
    working = {case: times[-arguments.rounds :] for case, times in working.items()}
    record(
        "dask_scaling",
        {
            "photos": arguments.photos,
            "views": 4,
            "pixels": arguments.size,
            "tasks": tasks,
            "seconds": {
                "run": {case: [round(t, 2) for t in times] for case, times in seconds.items()},
                "labelling": {case: [round(t, 2) for t in times] for case, times in inside.items()},
            },
            "ratio_labelling": median_ratio(inside, "workers_1", "workers_2"),
            "ratio_tasks": median_ratio(working, "workers_1", "workers_2"),
            "ratio_run": median_ratio(seconds, "workers_1", "workers_2"),
        },
    )


if __name__ == "__main__":
    main()
