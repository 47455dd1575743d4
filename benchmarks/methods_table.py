"""The README's table and plot of methods.py, made of `results/methods/*.json` alone.

Prints the table and writes `results/methods.svg`; `--readme` also puts the table between the
README's marks.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import yaml
from matplotlib import pyplot
from measure import RESULTS
from methods import ROWS

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- methods.py: begin -->", "<!-- methods.py: end -->"


def spread(values: list[float]) -> tuple[float, float]:
    """Return mean and standard error; NaN for the error of a single value."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return statistics.mean(values), error


def shown(values: list[float], *, sign: bool = False) -> str:
    """Return `mean ± standard error`."""
    mean, error = spread(values)
    number = f"{mean:+.1f}" if sign else f"{mean:.1f}"
    return number if error != error else f"{number} ± {error:.1f}"


def gains(rows: Mapping[str, Any], row: str, against: str, metric: str) -> list[float]:
    """Return the gain of a row over another, seed by seed, for the seeds that both have."""
    ours, theirs = rows[row]["by_seed"], rows[against]["by_seed"]
    return [ours[s][metric] - theirs[s][metric] for s in ours if s in theirs]


def matched(found: Sequence[Mapping[str, Any]]) -> str:
    """Return on how many verticals with test images a student is as good as their specialist."""
    compared = [
        [
            inside >= one["specialists"]["inside"][name]
            for name, inside in one["inside"].items()
            if inside is not None
        ]
        for one in found
    ]
    return f"{shown([sum(values) for values in compared])} of {len(compared[0])}"


def table(group: Mapping[str, Any], results: Mapping[str, Any]) -> list[str]:
    """Return one group as lines of Markdown."""
    metric, rows = group["metric"], results["rows"]
    seeds = max(len(row["by_seed"]) for row in rows.values())
    # All are also compared in what most papers report.
    metrics = [metric, *({"top1"} - {metric})]
    # A gain inside the verticals is first of all one over the specialists.
    beside_specialists = metric == "top1_inside"
    columns = [*metrics, *(["verticals at least as good"] if beside_specialists else [])]
    lines = [
        f"**{group['title']}** ({results['classes']:,} classes, {seeds} "
        f"seed{'s' * (seeds != 1)}, {results['machine']['date']})",
        "",
        f"| row | {' | '.join(columns)} | gain{f' in {metric}' * (metric != 'top1')} | "
        "parameters | MFLOPs |",
        "| --- |" + " --- |" * (len(columns) + 3),
    ]
    if beside_specialists:
        found = list(next(iter(rows.values()))["by_seed"].values())
        inside = shown([one["specialists"]["top1_inside"] for one in found])
        blank = "| " * (len(columns) + 1)
        size = f"{found[0]['specialists']['parameters'] / 1e6:.2f} M"
        lines.append(f"| the specialists, each in its vertical | {inside} {blank}{size} | |")
    for name, row in group["rows"].items():
        if name not in rows:
            continue
        found = list(rows[name]["by_seed"].values())
        against = (row or {}).get("against")
        gain = ""
        if against in rows:
            values = gains(rows, name, against, metric)
            gain = f"{shown(values, sign=True)} over {against}"
            if "target" in row:
                gain += f" (target {row['target']:+g})"
        values = [shown([one[metric] for one in found]) for metric in metrics]
        if beside_specialists:
            values.append(matched(found))
        lines.append(
            f"| {name} | {' | '.join(values)} | {gain} | "
            f"{found[0]['parameters'] / 1e6:.2f} M | {found[0]['flops'] / 1e6:.0f} |"
        )
    return [*lines, ""]


def plot(groups: Mapping[str, Any], results: Mapping[str, Any], path: Path) -> None:
    """Draw the gain of every row over its control, with standard errors."""
    entries = []
    for name, found in results.items():
        group = groups[name]
        for row, settings in group["rows"].items():
            against = (settings or {}).get("against")
            if row in found["rows"] and against in found["rows"]:
                values = gains(found["rows"], row, against, group["metric"])
                entries.append((name, row, *spread(values)))
    if not entries:
        return
    figure, axes = pyplot.subplots(figsize=(9, 0.6 + 0.28 * len(entries)), layout="constrained")
    colours = {name: f"C{index}" for index, name in enumerate(results)}
    for place, (name, _row, mean, error) in enumerate(reversed(entries)):
        axes.errorbar(mean, place, xerr=error, fmt="o", color=colours[name], capsize=3)
    axes.set_yticks(range(len(entries)), [f"{n}: {row}" for n, row, *_ in reversed(entries)])
    axes.axvline(0, color="0.6", linewidth=1)
    axes.set_xlabel("points gained over the row's control\n(mean and standard error over seeds)")
    axes.spines[["top", "right"]].set_visible(False)
    # Equal results give an equal file.
    with matplotlib.rc_context({"svg.hashsalt": "methods"}):
        figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--readme", action="store_true")
    arguments = parser.parse_args()
    groups = yaml.safe_load(ROWS.read_text(encoding="utf-8"))
    files = {name: RESULTS / "methods" / f"{name}.json" for name in groups}
    results = {
        name: json.loads(path.read_text(encoding="utf-8"))
        for name, path in files.items()
        if path.exists()
    }
    text = "\n".join(line for name in results for line in table(groups[name], results[name]))
    plot(groups, results, RESULTS / "methods.svg")
    print(text)
    if arguments.readme:
        before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
        after = rest.partition(END)[2]
        README.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
