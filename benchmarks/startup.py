"""How long the command takes to start: real processes, one after the other.

`concentrate --help`, and `concentrate plan` on the demo's project, whose images are listed already
and of which nothing is labelled. Both with a warm bytecode cache; beside them an interpreter that
does nothing.

    python benchmarks/startup.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile

from measure import Figure, benchmark_parser, interleaved, record
from stages import DEMO

COMMAND = [sys.executable, "-m", "flows.cli"]


def main() -> None:
    parser = benchmark_parser(__doc__)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as workspace:
        commands = {
            "help": [*COMMAND, "--help"],
            "plan": [*COMMAND, "plan", str(DEMO), "--set", f"workspace={workspace}"],
            "interpreter": [sys.executable, "-c", "pass"],
        }

        def run(name: str) -> None:
            subprocess.run(commands[name], check=True, capture_output=True)

        seconds = interleaved(
            {name: lambda name=name: run(name) for name in commands},
            rounds=5 if arguments.quick else 15,
        )
    medians = {name: round(statistics.median(times), 3) for name, times in seconds.items()}
    figures = [
        Figure(
            what=what,
            value=medians[name],
            must_be="at most",
            target=target,
            unit="s",
            against=f"an interpreter that does nothing: {medians['interpreter']} s",
            bound=bound,
        )
        for name, what, target, bound in (
            (
                "help",
                "concentrate --help",
                0.5,
                "importing typer and rich; next our verbs' signatures",
            ),
            (
                "plan",
                "concentrate plan, the demo's project",
                2.0,
                "importing zarr, pyarrow, pydantic's models and fontTools; next listing images",
            ),
        )
    ]
    record(
        "startup",
        {
            "seconds": {
                name: [round(value, 3) for value in times] for name, times in seconds.items()
            }
        },
        arguments.out / "startup.json",
        figures=figures,
    )


if __name__ == "__main__":
    main()
