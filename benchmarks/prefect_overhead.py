"""What Prefect adds to labelling: tasks of the shape of `label_group`, beside a bare loop.

A real server on the loopback, with its SQLite file; tasks of some 0.2 s, so that Prefect's cost is
seen; the same work without Prefect in turn. The work sleeps, so the server has a core to itself;
on a machine whose teacher uses every core its CPU time comes on top, and is counted as well.

    python benchmarks/prefect_overhead.py
"""

from __future__ import annotations

import argparse
import os
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

TASKS, TASK_SECONDS = 30, 30.0
TARGET_SHARE = 0.01


@contextmanager
def prefect_server(home: Path) -> Iterator[psutil.Process]:
    """Run a server of its own, and point this process at it. Call it before Prefect is imported."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = int(listener.getsockname()[1])
    os.environ |= {
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_LEVEL": "CRITICAL",
        "PREFECT_LOGGING_TO_API_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }
    command = [sys.executable, "-m", "prefect", "server", "start", "--no-ui"]
    process = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_until_healthy(f"http://127.0.0.1:{port}/api/health", process)
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(timeout=60)


def _wait_until_healthy(url: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 180
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.3)
    raise RuntimeError("the Prefect server does not answer")


def flows(seconds: float) -> tuple[Any, Any]:
    """Return the flow and the bare loop, each a function of the number of tasks.

    Tasks, subflow, hooks and artifacts are as in `flows/label_teachers.py`.
    """
    from prefect import flow, tags, task
    from prefect.artifacts import create_table_artifact
    from prefect.cache_policies import NO_CACHE

    from flows.artifacts import progress_artifact
    from flows.outcomes import RETRIES

    def work(part: str) -> dict[str, Any]:
        time.sleep(seconds)
        return {"part": part, "shards": 1, "labels": 1 << 18, "seconds": seconds}

    @task(cache_policy=NO_CACHE, task_run_name="label/{teacher}/{part}", tags=["label"], **RETRIES)
    def label_group(teacher: str, part: str, config: str, overrides: list[str]) -> dict[str, Any]:
        follow = progress_artifact(f"labels of {teacher}: {part}", "labelling", teacher)
        found = work(part)
        follow(1.0)
        return found

    @flow(name="label-teacher", log_prints=False)
    def label_teacher(teacher: str, count: int) -> float:
        with tags(teacher):
            started = time.perf_counter()
            done = [label_group(teacher, f"v0-v3/s{i}", "a.yaml", []) for i in range(count)]
            inside = time.perf_counter() - started
        create_table_artifact(done[:1], key="labels-teacher")
        return inside

    @flow(name="label-teachers", log_prints=False)
    def label_teachers(count: int) -> float:
        return label_teacher("teacher", count)

    def bare(count: int) -> None:
        for number in range(count):
            work(f"v0-v3/s{number}")

    return label_teachers, bare


def _cpu_seconds(server: psutil.Process) -> float:
    """Return the CPU time of a server and of its children so far."""
    times = [process.cpu_times() for process in (server, *server.children(recursive=True))]
    return sum(time.user + time.system for time in times)


def _memory_bytes(server: psutil.Process) -> int:
    """Return what a server and its children hold in memory."""
    processes = (server, *server.children(recursive=True))
    return sum(int(process.memory_info().rss) for process in processes)


def _rows(database: Path) -> dict[str, int]:
    """Return the rows of the server's tables, and the bytes that are in use."""
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:

        def one(statement: str) -> int:
            return int(connection.execute(statement).fetchone()[0])

        pages = one("pragma page_count") - one("pragma freelist_count")
        return {
            "task_runs": one("select count(*) from task_run"),
            "events": one("select count(*) from events"),
            "bytes": pages * one("pragma page_size"),
        }


def _settled_rows(database: Path) -> dict[str, int]:
    """Return the rows once the server has written all of them."""
    found = _rows(database)
    for _ in range(60):
        time.sleep(1)
        before, found = found, _rows(database)
        if before == found:
            break
    return found


def measured(home: Path, rounds: int, seconds: float) -> dict[str, Any]:
    """Return the figures."""
    with prefect_server(home) as server:
        flow, bare = flows(seconds)
        flow(2)  # imports, connections, tables
        database = home / "prefect.db"
        before, cpu = _settled_rows(database), _cpu_seconds(server)
        walls: dict[str, list[float]] = {"bare": [], "flow": [], "inside": []}
        for turn in range(rounds):
            for name in ("bare", "flow") if turn % 2 else ("flow", "bare"):
                started = time.perf_counter()
                inside = (bare if name == "bare" else flow)(TASKS)
                walls[name].append(time.perf_counter() - started)
                if name == "flow":
                    walls["inside"].append(inside)
                print(f"  round {turn}: {name}", file=sys.stderr)
        after, later = _settled_rows(database), _cpu_seconds(server)
        held = _memory_bytes(server)
    tasks = rounds * TASKS
    pairs = zip(walls["flow"], walls["inside"], walls["bare"], strict=True)
    costs = [((inside - alone) / TASKS, whole - inside) for whole, inside, alone in pairs]
    each = statistics.median(cost for cost, _ in costs)
    fixed = statistics.median(cost for _, cost in costs)
    server_cpu = (later - cpu) / tasks
    work = TASKS * TASK_SECONDS
    share = (TASKS * each + fixed) / work
    with_cpu = share + TASKS * server_cpu / work
    return {
        "tasks": TASKS,
        "rounds": rounds,
        "seconds_of_work_per_task": seconds,
        "seconds": {name: [round(value, 3) for value in times] for name, times in walls.items()},
        "seconds_per_task": round(each, 4),
        "seconds_per_run": round(fixed, 3),
        "server_cpu_seconds_per_task": round(server_cpu, 4),
        "server_memory_mb": round(held / 2**20),
        "task_runs": after["task_runs"] - before["task_runs"],
        "events_per_task": round((after["events"] - before["events"]) / tasks, 2),
        "database_bytes_per_task": round((after["bytes"] - before["bytes"]) / tasks),
        "share_of_30_tasks_of_30_s": {
            "computation": f"({TASKS} x {each:.4f} s + {fixed:.3f} s) / ({TASKS} x "
            f"{TASK_SECONDS:.0f} s) = {100 * share:.3f} %; with the server's CPU time taken from "
            f"the teacher: + {TASKS} x {server_cpu:.4f} s = {100 * with_cpu:.3f} %",
            "share": round(share, 5),
            "share_with_server_cpu": round(with_cpu, 5),
        },
        "targets": {"at most 1 %, server's CPU time included": with_cpu <= TARGET_SHARE},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.2, help="of work in each task")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measured(Path(folder), given.rounds, given.seconds)
    from measure import record

    record("prefect_overhead", figures)


if __name__ == "__main__":
    main()
