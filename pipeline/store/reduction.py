"""Many shards to one value: a tree of Dask tasks, on threads or on a cluster.

In: the graph, the scheduler, and what is told of the progress. Left out: what is computed
(shard_figures.py, compare.py). A task reads its shards one after the other and returns sums, so
memory is bounded by the number of threads and not by the store.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from storage_schemas.errors import StoreError

Part = TypeVar("Part")
Merge = Callable[[Sequence[Part]], Part]
Progress = Callable[[int, int], None]

# A cluster's scheduler takes some 5,000 tasks a second; a task should hold at least one shard.
LARGEST_TASKS = 512
# zarr decodes on a pool of its own: more threads of ours hold more memory and read no faster.
LARGEST_THREADS = 8
MERGED_AT_ONCE = 8
CONNECT_SECONDS = 10


def grouped(places: Sequence[Any]) -> list[list[Any]]:
    """Return the places in groups of neighbours, one a task."""
    size = max(1, -(-len(places) // LARGEST_TASKS))
    return [list(places[at : at + size]) for at in range(0, len(places), size)]


def reduce_groups(
    reduce_group: Callable[..., Part],
    groups: Sequence[Sequence[Any]],
    merge: Merge[Part],
    shared: Sequence[Any],
    *,
    address: str | None = None,
    progress: Progress | None = None,
) -> Part:
    """Return the merged value of `reduce_group(group, *shared)` over all groups.

    Args:
        reduce_group: Module-level function, since a cluster imports it by name.
        groups: At least one.
        merge: Module-level function of a few parts; associative.
        shared: Values that every task needs; sent once to each worker of a cluster.
        address: Of the scheduler of a `distributed` cluster, whose workers see the same files;
            threads of this process when None.
        progress: Called with (groups done, groups).

    Raises:
        StoreError: If no scheduler answers at the address.
    """
    if address is not None:
        return _on_cluster(reduce_group, groups, merge, shared, address, progress)
    from dask.callbacks import Callback

    leaves, total = _tree(reduce_group, groups, merge, shared)
    keys = {leaf.key for leaf in leaves}
    done: list[Any] = []

    def count(key: Any, *_: Any) -> None:
        if key in keys:
            done.append(key)
            if progress is not None:
                progress(len(done), len(keys))

    threads = min(os.cpu_count() or 1, LARGEST_THREADS)
    with Callback(posttask=count):
        found: Part = total.compute(scheduler="threads", num_workers=threads)
    return found


def _on_cluster(
    reduce_group: Callable[..., Part],
    groups: Sequence[Sequence[Any]],
    merge: Merge[Part],
    shared: Sequence[Any],
    address: str,
    progress: Progress | None,
) -> Part:
    from dask.distributed import Client, as_completed

    try:
        client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise StoreError(
            f"no Dask scheduler answers at {address!r}: {error}; start one with `dask scheduler`, "
            "or leave --address out to use the threads of this machine"
        ) from error
    with client:
        sent = client.scatter(list(shared), broadcast=True, hash=False)
        leaves, total = _tree(reduce_group, groups, merge, sent)
        *futures, last = client.compute([*leaves, total])
        for done, future in enumerate(as_completed(futures, loop=client.loop), start=1):
            if progress is not None:
                progress(done, len(futures))
            future.release()
        found: Part = last.result()
    return found


def _tree(
    reduce_group: Callable[..., Part],
    groups: Sequence[Sequence[Any]],
    merge: Merge[Part],
    shared: Sequence[Any],
) -> tuple[list[Any], Any]:
    import dask

    # traverse=False: a list of many numbers is one value, not a graph.
    values = [value if _is_future(value) else _whole(value) for value in shared]
    leaves = [
        dask.delayed(reduce_group, pure=False, traverse=False)(_whole(group), *values)
        for group in groups
    ]
    level = leaves
    while len(level) > 1:
        level = [
            dask.delayed(merge, pure=False)(level[at : at + MERGED_AT_ONCE])
            for at in range(0, len(level), MERGED_AT_ONCE)
        ]
    return leaves, level[0]


def _whole(value: Any) -> Any:
    import dask

    return dask.delayed(value, pure=False, traverse=False)


def _is_future(value: Any) -> bool:
    from dask.distributed import Future

    return isinstance(value, Future)
