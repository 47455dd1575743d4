"""What one rank runs: `python -m pipeline.training.distributed`, started by torchrun.

In: the process group, the device of the rank, and the same `train_student` that a single process
calls, on what the project file says. Left out: starting the ranks and watching them (launch.py).

The rendezvous is a file, so no store listens on a port; gloo and nccl talk over the loopback
interface. A rank ends as soon as the process that launched it does.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from pipeline.config import load_project
from pipeline.data import load_label_space, load_manifest
from pipeline.store.published import open_published
from pipeline.training.fit import pick_device
from pipeline.training.runs import student_runs
from pipeline.training.students import train_student
from storage_schemas.errors import ConcentrateError, TrainingError
from storage_schemas.manifest import TRAIN

# Files of a launch, in its folder.
LOCK, RENDEZVOUS, STORE, PROGRESS = "launch.lock", "rendezvous", "store", "progress.json"

_REPORT_SECONDS = 0.2
_LINGER_SECONDS = 2.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as one rank; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True, help="the project file")
    parser.add_argument("--role", required=True, help="student or control")
    parser.add_argument("--fingerprint", required=True, help="of the run")
    parser.add_argument("--folder", required=True, type=Path, help="of the launch")
    parser.add_argument("overrides", nargs="*", help="settings that replace those of the file")
    options = parser.parse_args(arguments)
    _end_with_launcher(options.folder / LOCK)
    try:
        _train(options.config, options.overrides, options.role, options.fingerprint, options.folder)
    except ConcentrateError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except Exception:
        traceback.print_exc()
        # A rank whose neighbour died fails next. It waits, so that torchrun blames the other.
        time.sleep(_LINGER_SECONDS)
        return 1
    return 0


def _end_with_launcher(lock: Path) -> None:
    """End this process once the launcher lets go of its lock, as the kernel does when it dies."""
    file = lock.open()

    def wait() -> None:
        fcntl.flock(file, fcntl.LOCK_SH)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _train(config: str, overrides: list[str], role: str, fingerprint: str, folder: Path) -> None:
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    project = load_project(config, overrides)
    manifest, space = load_manifest(project.workspace), load_label_space(project.workspace)
    budget = project.student.memory_budget_mb << 20
    published = open_published(project, space, manifest, TRAIN, cache_bytes=budget)
    runs = {run.role: run for run in student_runs(project, space, manifest, published)}
    run = runs.get(role)  # type: ignore[call-overload]
    if run is None or run.fingerprint != fingerprint:
        raise TrainingError(
            "project file, images or labels have changed since the ranks were started; run again"
        )
    on_gpu = pick_device(project.runtime.device).type == "cuda"
    if on_gpu:
        torch.cuda.set_device(rank)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        init_method=f"file://{folder / STORE}",
        rank=rank,
        world_size=size,
        device_id=torch.device("cuda", rank) if on_gpu else None,
    )
    report = _progress_file(folder / PROGRESS) if rank == 0 else None
    train_student(project, run, space, manifest, published, report=report)
    dist.destroy_process_group()


def _progress_file(path: Path) -> Callable[[int, int, Mapping[str, float]], None]:
    """Return a report that keeps the newest progress in a file, at most a few times a second."""
    written = float("-inf")

    def report(step: int, total: int, values: Mapping[str, float]) -> None:
        nonlocal written
        if step < total and time.monotonic() - written < _REPORT_SECONDS:
            return
        written = time.monotonic()
        new = path.with_suffix(".new")
        # The bar is not worth the end of a run, e.g. on a full disk.
        with contextlib.suppress(OSError):
            new.write_text(json.dumps([step, total, dict(values)]), encoding="utf-8")
            new.replace(path)

    return report


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # All is written. Threads of the process group may outlive it, and when the interpreter is taken
    # down around them, now and then one aborts the process: a run that is done would have failed.
    os._exit(code)
