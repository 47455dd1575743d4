"""The `concentrate` command: one verb per stage.

torch, zarr and Prefect are imported by the verbs that need them, so that --help is quick.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType

import typer

from flows.cli import services, stages, stores, students

app = typer.Typer(
    name="concentrate",
    help="Many specialist classifiers, one student: label once, train from the store.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

for _verb, _example in (
    (stages.run, "concentrate run project.yaml --set student.epochs=20"),
    (stages.plan, "concentrate plan project.yaml"),
    (stages.specialists, "concentrate specialists project.yaml"),
    (stages.label, "concentrate label project.yaml --teacher letters"),
    (stages.verify, "concentrate verify project.yaml --depth full"),
    (stages.train, "concentrate train project.yaml"),
    (stages.evaluate, "concentrate evaluate project.yaml --json"),
    (stages.report, "concentrate report project.yaml"),
    (services.deploy, "concentrate deploy project.yaml --nightly '0 2 * * *'"),
    (services.serve, "concentrate serve project.yaml"),
    (stores.inspect, "concentrate inspect STORE"),
    (stores.compare, "concentrate compare STORE STORE"),
    (stores.gc, "concentrate gc project.yaml --keep 2"),
    (students.predict, "concentrate predict STUDENT IMAGE"),
    (students.init, "concentrate init pets --images IMAGES"),
):
    app.command(epilog=f"[bold]Example:[/bold]  {_example}")(_verb)


def _stop_at_once(number: int, frame: FrameType | None = None) -> None:
    """End this process and its children where they stand: all work is written to survive that.

    Prefect would report the interruption to its own server first, which has been interrupted too,
    and wait for minutes.
    """
    import psutil

    for child in psutil.Process().children(recursive=True):
        child.terminate()
    print("\nstopped; the same command goes on from here", file=sys.stderr, flush=True)
    os._exit(128 + number)


def _watch_signals() -> None:
    """Take SIGINT and SIGTERM also while Prefect has a handler of its own for them."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def watch() -> None:
        while True:
            number = os.read(reader, 1)[0]
            if number in (signal.SIGINT, signal.SIGTERM):
                _stop_at_once(number)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    """Run the command line.

    A signal ends it at once. On a server that is not ours, the interrupted run is marked cancelled
    first (flows/outcomes.py), and Prefect hands SIGTERM on when that is done.
    """
    signal.signal(signal.SIGTERM, _stop_at_once)
    if "PREFECT_API_URL" not in os.environ:
        signal.signal(signal.SIGINT, _stop_at_once)
        _watch_signals()
    app()
