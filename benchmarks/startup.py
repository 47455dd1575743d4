"""How long the command takes to start: real processes, one after the other.

`concentrate --help`, and `concentrate plan` on the demo's project, whose 13,488 images are listed
already and of which nothing is labelled. Both with a warm bytecode cache; beside them an
interpreter that does nothing.

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
            what="concentrate --help",
            value=medians["help"],
            must_be="at most",
            target=0.5,
            unit="s",
            against=f"an interpreter that does nothing: {medians['interpreter']} s",
            bound="importing typer and rich, three quarters; next our verbs' signatures",
        ),
        Figure(
            what="concentrate plan, the demo's project",
            value=medians["plan"],
            must_be="at most",
            target=2.0,
            unit="s",
            against=f"an interpreter that does nothing: {medians['interpreter']} s",
            bound="importing zarr, pyarrow, pydantic's models and fontTools, two thirds; "
            "next listing the images",
        ),
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
