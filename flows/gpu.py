"""The right to use a GPU: one task at a time, over all runs of a server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.concurrency.sync import concurrency
from prefect.runtime import deployment

from pipeline.config import Project
from storage_schemas.errors import ConfigError


@contextmanager
def gpu_slot(project: Project) -> Iterator[None]:
    """Hold the slot of the GPU that a task will use; nothing on a CPU.

    A deployed run must find the limit that `concentrate deploy` made. A run from the command line
    holds it where the server has one, so that both share a GPU of one machine.

    Raises:
        ConfigError: If a deployed run finds no limit of that name.
    """
    from pipeline.devices import gpu_name
    from pipeline.training.fit import pick_device

    device = pick_device(project.runtime.device)
    if device.type != "cuda":
        yield
        return
    with hold(gpu_name(device.index or 0), strict=deployment.id is not None):
        yield


@contextmanager
def hold(limit: str, *, strict: bool) -> Iterator[None]:
    """Hold the one slot of a limit.

    Raises:
        ConfigError: If `strict` and the server knows no such limit.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(
                concurrency(limit, occupy=1, strict=strict, raise_on_lease_renewal_failure=False)
            )
        except ConcurrencySlotAcquisitionError as error:
            raise ConfigError(
                "gpu",
                [
                    f"the server has no limit {limit!r}; run `concentrate deploy` on this machine, "
                    f"or `prefect gcl create {limit} --limit 1`"
                ],
            ) from error
        yield
