"""The right to use GPUs: one task at a time on each, over all runs of a server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.concurrency.sync import concurrency
from prefect.runtime import deployment

from pipeline.config import Project
from storage_schemas.errors import ConfigError


@contextmanager
def gpu_slot(project: Project, devices: int = 1) -> Iterator[None]:
    """Hold the slot of each GPU that a task will use; nothing on a CPU.

    A deployed run must find the limit that `concentrate deploy` made. A run from the command line
    holds it where the server has one, so that both share a GPU of one machine.

    Args:
        project: Says whether it uses GPUs at all.
        devices: How many, from the first that this process sees.

    Raises:
        ConfigError: If a deployed run finds no limit of that name.
    """
    from pipeline.devices import gpu_name
    from pipeline.training.fit import pick_device

    device = pick_device(project.runtime.device)
    if device.type != "cuda":
        yield
        return
    first = device.index or 0
    names = [gpu_name(first + number) for number in range(devices)]
    with hold(*names, strict=deployment.id is not None):
        yield


@contextmanager
def hold(*limits: str, strict: bool) -> Iterator[None]:
    """Hold the one slot of each limit.

    They are taken one after the other, by everybody in the order of the GPUs, so that no two runs
    wait for each other. (Asked for together, a missing one would not be told.)

    Raises:
        ConfigError: If `strict` and the server lacks one of the limits.
    """
    with ExitStack() as stack:
        for limit in limits:
            try:
                stack.enter_context(
                    concurrency(
                        limit, occupy=1, strict=strict, raise_on_lease_renewal_failure=False
                    )
                )
            except ConcurrencySlotAcquisitionError as error:
                raise ConfigError(
                    "gpu",
                    [
                        f"the server has no limit {limit!r}; run `concentrate deploy` on this "
                        f"machine, or `prefect gcl create {limit} --limit 1`"
                    ],
                ) from error
        yield
