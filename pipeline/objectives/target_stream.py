"""Targets of batch after batch, read and decoded ahead of the step that needs them.

In: `stream_targets`, which lets threads fetch some batches at a time, in order. Left out: what is
fetched (stored_signals.py) and images (pipeline.data.loader).

One batch of 256 labels takes longer to ask for than to decode: what numpy and Python need for a
call is paid once for some thousand labels here, and a shard that is to be read is read while the
network trains. numpy releases the interpreter's lock where the time goes, so threads suffice, and
the labels are in memory once, whatever the number of loader workers.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from pipeline.objectives.base import TargetBatch

Rows = npt.NDArray[np.int64]
BatchIndex = tuple[Rows, Rows]

THREADS = 2
BLOCKS_AHEAD = 4


def stream_targets(
    fetch: Callable[[Sequence[BatchIndex]], Iterator[TargetBatch]],
    batches: Iterable[BatchIndex],
    *,
    rows_at_once: int,
) -> Generator[TargetBatch, None, None]:
    """Yield the targets of each batch, in order.

    An error of a fetch is raised where its first batch would have come. Threads end when the
    iterator is closed.

    Args:
        fetch: Targets of several (rows, views) of one size; called by several threads at once.
        batches: (rows, views) of each batch, drawn from by the caller's thread.
        rows_at_once: How many labels a call of `fetch` is for; at least one batch.
    """
    batches = iter(batches)
    waiting: deque[Future[Iterator[TargetBatch]]] = deque()
    with ThreadPoolExecutor(THREADS, thread_name_prefix="targets") as threads:
        try:
            for first in batches:
                more = max(rows_at_once // max(len(first[0]), 1), 1) - 1
                block = [first, *itertools.islice(batches, more)]
                waiting.append(threads.submit(fetch, block))
                if len(waiting) == BLOCKS_AHEAD:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
