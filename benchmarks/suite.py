"""All speed benchmarks, one after the other, and one table of their figures.

Each script runs in a process of its own, alone. Full results are kept in `results/`; the quick
form (`--check`) keeps nothing and fails where a figure falls short of its target by over 15 %.

    python benchmarks/suite.py                 # make bench
    python benchmarks/suite.py --check         # make bench-check
    python benchmarks/suite.py --only sparse_loss stream
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from measure import RESULTS, Figure
from rich.console import Console
from rich.table import Table

# Each script writes the result of its name.
SUITE = (
    "stream",
    "stream_large",
    "billion_rows",
    "sparse_loss",
    "fused_classifier",
    "top_k",
    "step_overhead",
    "epoch_speed",
    "label_overhead",
    "write_share",
    "image_decode",
    "startup",
)
ALLOWED_SHORTFALL = 0.15


def figures_of(script: str, out: Path, *, quick: bool) -> list[Figure]:
    """Run a script and return the figures that it wrote.

    Raises:
        subprocess.CalledProcessError: The script failed; what it said is on stderr.
    """
    command = [sys.executable, str(Path(__file__).with_name(f"{script}.py")), "--out", str(out)]
    subprocess.run(
        [*command, *(["--quick"] if quick else [])],
        check=True,
        stdout=subprocess.DEVNULL,
        cwd=Path(__file__).parents[1],
    )
    result = json.loads((out / f"{script}.json").read_text(encoding="utf-8"))
    return [Figure(**figure) for figure in result["figures"]]


def figures_table(figures: Sequence[Figure]) -> Table:
    """Return the table of figures, targets, peers and limits."""
    table = Table(show_lines=True)
    for column in ("what", "figure", "target", "figure / target", "against", "bound by; next"):
        table.add_column(column, overflow="fold")
    for figure in figures:
        mark = "[red]" if figure.shortfall else "[green]"
        table.add_row(
            figure.what,
            f"{mark}{figure.value:,.4g}[/] {figure.unit}",
            f"{figure.must_be} {figure.target:,.4g} {figure.unit}",
            f"{figure.value / figure.target:.2f}",
            figure.against,
            figure.bound,
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="quick forms; fail where one misses")
    parser.add_argument("--only", nargs="+", choices=SUITE, help="only these scripts")
    arguments = parser.parse_args()
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as folder:
        for script in arguments.only or SUITE:
            started = time.perf_counter()
            out = Path(folder) if arguments.check else RESULTS
            figures += figures_of(script, out, quick=arguments.check)
            print(f"{script}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    Console(width=160).print(figures_table(figures))
    short = [figure for figure in figures if figure.shortfall > ALLOWED_SHORTFALL]
    if arguments.check and short:
        names = ", ".join(figure.what for figure in short)
        sys.exit(f"more than {ALLOWED_SHORTFALL:.0%} short of the target: {names}")


if __name__ == "__main__":
    main()
