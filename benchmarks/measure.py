"""What every benchmark shares: rounds taken in turn, figures beside targets, and the JSON record.

Machines are noisy, so figures are ratios of medians over interleaved rounds of one process.
`suite.py` runs the scripts and makes one table of their figures.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

RESULTS = Path(__file__).parent / "results"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure:
    """A measured figure beside its target.

    Attributes:
        what: What was measured, in a few words.
        value: The figure; a ratio of two cases of one run wherever that is possible.
        must_be: Which side of the target is good.
        target: What was asked for.
        unit: Of value and target; empty for a ratio.
        against: The peer or control that ran beside it.
        bound: What bounded it on this machine, and what the next bound is.
    """

    what: str
    value: float
    must_be: Literal["at least", "at most"]
    target: float
    unit: str = ""
    against: str
    bound: str

    @property
    def shortfall(self) -> float:
        """By which share of the target the figure is on the wrong side of it; 0 if it is not."""
        missing = (
            self.target - self.value if self.must_be == "at least" else self.value - self.target
        )
        return max(0.0, missing / self.target)


def benchmark_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with what `suite.py` passes to every script.

    `--quick` is the short form for `make bench-check`; its results go to `--out`.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON result")
    return parser


def machine() -> dict[str, Any]:
    """Return what a figure depends on."""
    import torch  # not at the top: some parts must not hold it in memory

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


def peak_mb() -> float:
    """Return the most resident memory of this process so far, in MB.

    The kernel's high-water mark, since `ru_maxrss` carries over exec on Linux.

    Raises:
        RuntimeError: If the kernel does not keep it.
    """
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM"):
            return round(int(line.split()[1]) / 1024, 1)
    raise RuntimeError("the kernel does not say VmHWM")


def median_ratio(seconds: Mapping[str, list[float]], first: str, second: str) -> dict[str, float]:
    """Return the median over rounds of first / second, with the smallest and largest round."""
    ratios = [a / b for a, b in zip(seconds[first], seconds[second], strict=True)]
    return {
        "median": round(statistics.median(ratios), 4),
        "min": round(min(ratios), 4),
        "max": round(max(ratios), 4),
    }


def peak_bytes(step: Callable[[], Any]) -> int:
    """Return the most that a step allocates for tensors at one time, on the CPU, in bytes.

    By torch's own count of its allocations, so that what malloc keeps for later does not blur it.
    """
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    kineto = profiler.profiler
    assert kineto is not None
    events = [event for event in kineto.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def record(
    name: str,
    values: Mapping[str, Any],
    path: Path | None = None,
    *,
    figures: Sequence[Figure] = (),
    quiet: bool = False,
) -> None:
    """Print the result as JSON and keep it, by default in `benchmarks/results/NAME.json`.

    Args:
        name: Of the benchmark.
        values: Everything that was measured, and the settings.
        path: Where else to keep it; `arguments.out / "NAME.json"` in scripts of the suite.
        figures: What the suite's table shows of it.
        quiet: Do not print.
    """
    result = {"benchmark": name, "machine": machine(), **values}
    if figures:
        result["figures"] = [dataclasses.asdict(figure) for figure in figures]
    text = json.dumps(result, indent=2, ensure_ascii=False)
    path = path or RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(text + "\n", encoding="utf-8")
    if not quiet:
        print(text)
