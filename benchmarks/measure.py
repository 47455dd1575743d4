"""What every benchmark shares: rounds taken in turn, the machine, and the JSON record.

Machines are noisy, so figures are ratios of medians over interleaved rounds of one process.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """Return what a figure depends on."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "torchvision", "zarr", "numpy", "prefect")},
    }


def interleaved(
    cases: Mapping[str, Callable[[], Any]],
    *,
    rounds: int,
    warmup: int = 1,
    before: Callable[[], Any] | None = None,
) -> dict[str, list[float]]:
    """Return the wall seconds of each case, the cases taken in turn in every round.

    Args:
        cases: Called without arguments.
        rounds: Counted rounds.
        warmup: Rounds before those.
        before: Called before each case, not timed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(warmup + rounds):
        # Every other round runs backwards, so that a drift of the machine favours no case.
        for name in list(cases) if turn % 2 else reversed(list(cases)):
            if before is not None:
                before()
            started = time.perf_counter()
            cases[name]()
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - started)
            print(f"  round {turn}: {name}", file=sys.stderr)
    return seconds


def median_ratio(seconds: Mapping[str, list[float]], first: str, second: str) -> dict[str, float]:
    """Return the median over rounds of first / second, with the smallest and largest round."""
    ratios = [a / b for a, b in zip(seconds[first], seconds[second], strict=True)]
    return {
        "median": round(statistics.median(ratios), 4),
        "min": round(min(ratios), 4),
        "max": round(max(ratios), 4),
    }


def record(
    name: str, values: Mapping[str, Any], path: Path | None = None, *, quiet: bool = False
) -> None:
    """Print the result as JSON and keep it, by default in `benchmarks/results/NAME.json`."""
    result = {"benchmark": name, "machine": machine(), **values}
    text = json.dumps(result, indent=2, ensure_ascii=False)
    path = path or RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(text + "\n", encoding="utf-8")
    if not quiet:
        print(text)
