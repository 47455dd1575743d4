"""Tasks that run side by side on the workers of a Dask cluster.

In: the cluster of a run, submitting tasks, waiting for them under one bar. Left out: the cluster
itself (pipeline/cluster.py) and what a task does. Workers have no terminal: they tell the flow how
far they are, and the flow draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from prefect import Task
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.task_runners import TaskRunner

from flows.progress import Bar
from pipeline.config import Project

LOOK_SECONDS = 0.25


@contextmanager
def cluster_runner(project: Project) -> Iterator[TaskRunner[Any]]:
    """Yield the task runner of a project's cluster.

    Raises:
        ConfigError: If there is no cluster at the address that it names, or no fitting worker.
    """
    from prefect_dask import DaskTaskRunner

    from pipeline.cluster import cluster_address

    # Without it, each worker would start a Prefect server of its own.
    with get_client(sync_client=True) as client:
        server = {PREFECT_API_URL: str(client.api_url)}
    with cluster_address(project.runtime) as address, temporary_settings(server):
        yield DaskTaskRunner(address=address)


def num_workers() -> int:
    """Return how many tasks of the flow that calls this can run at a time."""
    from pipeline.cluster import count_workers

    return count_workers(_client())


def run_side_by_side(
    task: Task[..., Any], calls: Sequence[dict[str, Any]], project: Project, topic: str, line: Bar
) -> list[Any]:
    """Run one task for each call on the cluster of the flow that calls this.

    A worker that dies costs what its task had not committed: Dask runs the task again elsewhere.
    After the first failure nothing more is begun; a task that is at work stops before its next
    shard, since the lock of the store goes with the flow.

    Args:
        task: Of an importable module.
        calls: Its arguments, plain values.
        project: Says which resources a task needs.
        topic: On which the tasks tell of their progress.
        line: Shows it.

    Returns:
        What the tasks returned, in the order of the calls.

    Raises:
        StoreError: If workers die again and again, or the scheduler does.
        Exception: What a task raised.
    """
    from pipeline.cluster import asking_for, check_not_lost, heard

    with heard(_client(), topic) as done, asking_for(project.runtime.resources):
        futures = [task.submit(**call) for call in calls]
        waiting = dict(enumerate(futures))
        results: dict[int, Any] = {}
        try:
            while waiting:
                next(iter(waiting.values())).wait(LOOK_SECONDS)
                line.set(done())
                for number, future in list(waiting.items()):
                    if future.wrapped_future.done():
                        check_not_lost(future.wrapped_future)
                        results[number] = waiting.pop(number).result()
        finally:
            for future in waiting.values():
                future.wrapped_future.cancel()
    return [results[number] for number in range(len(calls))]


def _client() -> Any:
    context = FlowRunContext.get()
    assert context is not None
    runner: Any = context.task_runner  # a DaskTaskRunner
    return runner.client
