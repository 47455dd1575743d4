"""The demo's claim: the student beats the same network trained on hard labels, same steps.

For each seed, specialists, views, student and control are all made anew. Reports the mean and the
standard error over seeds, on faces that nothing was trained on.

    python benchmarks/demo_accuracy.py --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from measure import record
from stages import DEMO, labelled_project, specialists_top1, trained

METRICS = ("top1", "top5", "top1_inside", "mpvap", "calibration_error")


def spread(values: list[float]) -> dict[str, float]:
    """Mean and standard error."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return {"mean": round(statistics.mean(values), 2), "standard_error": round(error, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default=DEMO)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", nargs="*", default=[], help="KEY=VALUE, for all seeds")
    parser.add_argument("--name", default="demo_accuracy", help="of the result file")
    arguments = parser.parse_args()
    by_seed, specialists = [], []
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory() as folder:
            overrides = [
                f"workspace={folder}",
                f"views.seed={seed}",
                f"specialists.seed={seed}",
                f"student.seed={seed}",
                *arguments.set,
            ]
            evaluation = trained(labelled_project(arguments.config, overrides))
        found = {run["role"]: run for run in evaluation["runs"]}
        inside = specialists_top1(evaluation)
        print(
            f"seed {seed}: student {found['student']['top1']} control {found['control']['top1']} "
            f"specialists {inside}",
            file=sys.stderr,
        )
        by_seed.append(found)
        specialists.append(inside)
    gains = [found["student"]["top1"] - found["control"]["top1"] for found in by_seed]
    record(
        arguments.name,
        {
            "config": arguments.config.name,
            "set": arguments.set,
            "seeds": arguments.seeds,
            "specialists_top1_inside": spread(specialists),
            **{
                role: {
                    metric: spread([found[role][metric] for found in by_seed]) for metric in METRICS
                }
                for role in ("control", "student")
            },
            "top1_gain": {**spread(gains), "by_seed": [round(gain, 2) for gain in gains]},
        },
    )


if __name__ == "__main__":
    main()
