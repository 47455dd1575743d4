"""A Dask cluster whose workers label: started on this machine, or found by its address.

In: the workers, whether they can do what is asked, and what they tell of their progress. Left
out: what runs on them (flows), and reductions over stores (pipeline/store/reduction.py).

Whoever reaches a scheduler can run code on its workers: Dask sends pickles. So a cluster that is
started here listens on the loopback only, without a dashboard; one that is found by its address
is trusted like this machine.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import dask
from dask.distributed import Client, Future, KilledWorker, LocalCluster, get_worker

from pipeline.config import RuntimeConfig
from storage_schemas.errors import ConfigError, StoreError

CONNECT_SECONDS = 10
TELL_SECONDS = 0.5


@contextmanager
def cluster_address(runtime: RuntimeConfig) -> Iterator[str]:
    """Yield the address of a scheduler with workers, which end with the context if it started them.

    Raises:
        ConfigError: If no scheduler answers at the address, it has no worker, or no worker has the
            resources that a task needs.
    """
    if runtime.address is not None:
        with _quiet():
            _check(runtime.address, runtime.resources)
            yield runtime.address
        return
    with (
        _quiet(),
        LocalCluster(
            n_workers=runtime.workers,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",  # its HTTP server always starts, without a page on it
            scheduler_kwargs={"dashboard": False},
            memory_limit=None,  # a teacher may take what there is, as without Dask
            resources=dict(runtime.resources) or None,
            silence_logs=logging.CRITICAL,
        ) as cluster,
    ):
        yield str(cluster.scheduler_address)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what Dask tells of its own life from the terminal; what goes wrong is raised."""
    logger = logging.getLogger("distributed")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _check(address: str, resources: Mapping[str, float]) -> None:
    start = f"dask worker {address} --nthreads 1 --no-dashboard"
    try:
        client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ConfigError(
            "runtime.address",
            [
                f"must be that of a Dask scheduler, and none answers at {address} ({error}); "
                f"start one with `dask scheduler --no-dashboard` and workers with `{start}`, or "
                "leave it out to use this machine"
            ],
        ) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=CONNECT_SECONDS)
        except TimeoutError as error:
            problem = f"the scheduler at {address} has no worker; start some with `{start}`"
            raise ConfigError("runtime.address", [problem]) from error
        offers = [
            dict(worker["resources"])
            for worker in client.scheduler_info(n_workers=-1)["workers"].values()
        ]
    if not any(
        all(offer.get(name, 0) >= needed for name, needed in resources.items()) for offer in offers
    ):
        wanted = " ".join(f"{name}={needed:g}" for name, needed in resources.items())
        raise ConfigError(
            "runtime.resources",
            [
                f"no worker at {address} offers {wanted}, their resources are {offers}; start "
                f"some with `{start} --resources '{wanted}'`"
            ],
        )


def asking_for(resources: Mapping[str, float]) -> AbstractContextManager[None]:
    """Have tasks that are submitted in this context run only where these resources are free."""
    context: AbstractContextManager[None] = dask.annotate(
        **({"resources": dict(resources)} if resources else {})
    )
    return context


def count_workers(client: Client) -> int:
    """Return how many tasks a cluster can work on at a time; at least 1."""
    threads: dict[str, int] = client.nthreads()
    return max(1, sum(threads.values()))


@contextmanager
def heard(client: Client, topic: str) -> Iterator[Callable[[], int]]:
    """Yield what returns the sum of what the tasks of a topic have said to be done."""
    done: dict[str, int] = {}

    def hear(event: tuple[float, Any]) -> None:
        part, count = event[1]
        done[part] = count  # not a sum: a task that is run again begins again

    client.subscribe_topic(topic, hear)
    try:
        yield lambda: sum(list(done.values()))
    finally:
        client.unsubscribe_topic(topic)


def teller(topic: str, part: str) -> Callable[[int], None]:
    """Return what a task on a worker calls with each count of what it has done.

    Args:
        topic: On which the run listens (`heard`).
        part: What the task does, as no other task of the topic.
    """
    worker = get_worker()
    done, last = 0, 0.0

    def tell(count: int) -> None:
        nonlocal done, last
        done += count
        if time.monotonic() - last > TELL_SECONDS:
            last = time.monotonic()
            worker.log_event(topic, (part, done))

    return tell


def check_not_lost(future: Future) -> None:
    """Raise if a finished task never ran to its end, as a task that failed by itself did.

    Raises:
        StoreError: If the workers that it ran on died, or the scheduler did.
    """
    again = "what is committed stays; run the command again"
    error = None if future.status == "finished" else future.exception()
    if isinstance(error, KilledWorker):
        raise StoreError(
            f"{error.allowed_failures + 1} Dask workers died while they labelled the same shards, "
            f"the last at {error.last_worker.address}; look at their logs, often it is memory. "
            f"When that is mended: {again}"
        ) from error
    if future.cancelled() or isinstance(error, CancelledError | OSError):
        raise StoreError(f"the Dask scheduler was lost ({error or future.status}); {again}")
