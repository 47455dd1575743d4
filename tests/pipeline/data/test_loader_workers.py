"""Loader workers and the process that they work for."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil

SCRIPT = """
    import os, signal
    import numpy as np, psutil, torch
    from pipeline.data.epoch_order import BatchOrder
    from pipeline.data.loader import BatchDataset, batch_loader
    from pipeline.objectives.base import TargetBatch

    def read(rows, views):
        return torch.zeros(len(rows), 1, 2, 2)

    def fetch(rows, views):
        return TargetBatch()

    if __name__ == "__main__":
        order = BatchOrder(rows=np.arange(8), batch_size=2, views=1, seed=0)
        loader = batch_loader(BatchDataset(read, fetch), order, epochs=9, num_workers=2)
        batches = iter(loader)
        next(batches)
        print(*[child.pid for child in psutil.Process().children(recursive=True)], flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_end_with_a_killed_trainer(tmp_path):
    """SIGKILL of the training process leaves no loader worker and no fork server."""
    file = tmp_path / "trainer.py"
    file.write_text(textwrap.dedent(SCRIPT))
    output = tmp_path / "output"  # a pipe would be held open by whoever is left
    with output.open("wb") as stdout:
        subprocess.run(
            [sys.executable, str(file)],
            env={"PYTHONPATH": str(Path(__file__).parents[3])},
            stdout=stdout,
            check=False,
            timeout=120,
        )
    pids = [int(word) for word in output.read_text().split()]
    assert len(pids) >= 3  # the fork server and two workers
    for _ in range(100):
        left = [pid for pid in pids if psutil.pid_exists(pid)]
        left = [pid for pid in left if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]
        if not left:
            break
        time.sleep(0.1)
    for pid in left:
        psutil.Process(pid).kill()
    assert left == []
