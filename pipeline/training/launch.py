"""Starting the ranks of a run with torchrun, watching them, and ending every one of them.

In: the command and its environment, progress from rank 0, and which rank died of what. Left out:
what a rank does (distributed.py). One machine only.

Everything of a launch lies in `<run>/ranks/<time>-<process>/`: `torchrun.log`, and standard
output and error of each rank below `logs/`.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from pipeline.config import Project
from pipeline.locations import local_folder
from pipeline.training.distributed import LOCK, PROGRESS, RENDEZVOUS
from pipeline.training.fit import StepReport
from pipeline.training.runs import StudentRun
from storage_schemas.errors import ConfigError, TrainingError

_POLL_SECONDS = 0.2
_END_SECONDS = 10.0
_LOG_LINES = 20
_TORCHRUN_LOG = "torchrun.log"


def check_devices(project: Project, images: int) -> None:
    """Refuse more ranks than there are GPUs, where GPUs are used, or training images.

    Raises:
        ConfigError: Says how many there are.
    """
    devices, problems = project.student.devices, []
    uses_gpus = project.runtime.device == "cuda" or (
        project.runtime.device == "auto" and torch.cuda.is_available()
    )
    if uses_gpus and devices > torch.cuda.device_count():
        problems.append(
            f"must be at most the visible GPUs ({torch.cuda.device_count()}), got {devices}; lower "
            "it, or set runtime.device to cpu"
        )
    if devices > images:
        problems.append(f"must be at most the training images ({images}), got {devices}")
    if problems:
        raise ConfigError("student.devices", problems)


def train_on_ranks(
    project: Project,
    run: StudentRun,
    images: int,
    config: str,
    overrides: Sequence[str],
    *,
    report: StepReport | None = None,
) -> dict[str, Any]:
    """Train one run on `student.devices` ranks, from its newest checkpoint where there is one.

    Args:
        project: As read from `config` with `overrides`.
        run: One of its runs.
        images: Training images.
        config: Path of the project file, which each rank reads again.
        overrides: `key.path=value` settings that replace those of the file.
        report: Called now and then with (steps done, all steps, latest values).

    Returns:
        The record that rank 0 wrote to `student.json`.

    Raises:
        ConfigError: If there are not as many GPUs or images as ranks.
        TrainingError: If a rank dies; says which, of what, and the end of its log.
    """
    check_devices(project, images)
    folder = (
        local_folder(run.folder).resolve()
        / "ranks"
        / f"{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}"
    )
    folder.mkdir(parents=True)
    ranks = project.student.devices
    command = _command(folder, ranks, run, config, overrides)
    with _held(folder / LOCK), (folder / _TORCHRUN_LOG).open("wb") as log:
        process = subprocess.Popen(
            command,
            env=os.environ | _environment(ranks),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches this process alone, which then ends them
        )
        try:
            _watch(process, folder / PROGRESS, report)
        finally:
            _end(process)
    record = run.record
    if process.returncode != 0 or record is None:
        raise TrainingError(_failure(folder, ranks, process.returncode))
    return record


def _command(
    folder: Path, ranks: int, run: StudentRun, config: str, overrides: Sequence[str]
) -> list[str]:
    # Not --standalone: its store would listen on every interface of the machine.
    rendezvous = ["--rdzv-backend=c10d", "--rdzv-conf=store_type=file", "--rdzv-id=ranks"]
    return [
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes=1", f"--nproc-per-node={ranks}"),
        *(*rendezvous, f"--rdzv-endpoint={folder / RENDEZVOUS}"),
        *(f"--log-dir={folder / 'logs'}", "--redirects=3"),
        *("-m", "pipeline.training.distributed"),
        *("--config", config, "--role", run.role, "--fingerprint", run.fingerprint),
        *("--folder", str(folder), "--", *overrides),
    ]


def _environment(ranks: int) -> dict[str, str]:
    """Return what the ranks need: our import path, their share of the threads, loopback."""
    found = {
        "PYTHONPATH": os.pathsep.join(str(Path(entry).resolve()) for entry in sys.path),
        "PYTHONSAFEPATH": "1",
        "OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // ranks)),
        # The agent would open a store on every interface for the ranks, which use a file.
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }
    loopback = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
    for library in ("GLOO", "NCCL"):
        name = f"{library}_SOCKET_IFNAME"
        if loopback and name not in os.environ:
            found[name] = loopback[0]
    return found


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """Hold the lock that the ranks wait for: they end when it is let go of, however that is."""
    with path.open("w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _watch(process: subprocess.Popen[bytes], progress: Path, report: StepReport | None) -> None:
    """Pass progress on until torchrun ends."""
    seen = ""
    while True:
        try:
            process.wait(_POLL_SECONDS)
        except subprocess.TimeoutExpired:
            running = True
        else:
            running = False
        text = progress.read_text(encoding="utf-8") if progress.exists() else ""
        if report is not None and text != seen:
            seen = text
            report(*json.loads(text))
        if not running:
            return


def _end(process: subprocess.Popen[bytes]) -> None:
    """End torchrun, which ends its ranks; a rank that is left ends with the lock."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _failure(folder: Path, ranks: int, code: int) -> str:
    """Say which rank died of what, as far as torchrun tells, and show the end of its log."""
    log = folder / _TORCHRUN_LOG
    root = log.read_text(encoding="utf-8", errors="replace").rpartition("Root Cause")[2]
    found = re.search(r"rank\s*:\s*(\d+).*?exitcode\s*:\s*(-?\d+)", root, re.DOTALL)
    who = f"torchrun, which drives {ranks} ranks,"
    if found:
        rank, code = int(found[1]), int(found[2])
        who = f"rank {rank} of {ranks}"
        log = next(folder.glob(f"logs/*/attempt_0/{rank}/stderr.log"), log)
    how = f"ended with code {code}"
    if code < 0:
        how = f"was killed by signal {-code} ({signal.strsignal(-code)})"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:]
    return "\n  ".join(
        [
            f"{who} {how}; the same command goes on from the newest checkpoint. The end of {log}:",
            *(lines or ["(nothing)"]),
        ]
    )
