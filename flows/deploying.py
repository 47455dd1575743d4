"""Putting the deployments of a project onto a Prefect server.

In: the work pool, the deployments with their schedules and triggers, one concurrency limit a GPU;
or all of it served by one process without a pool. Left out: what is deployed (deployments.py).
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prefect import Flow, serve
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import ConcurrencyLimitConfig
from prefect.deployments.runner import RunnerDeployment
from prefect.events import DeploymentTriggerTypes
from prefect.exceptions import ObjectNotFound
from prefect.schedules import Cron
from prefect.types.entrypoint import EntrypointType
from pydantic import TypeAdapter

from flows.deployments import CONCURRENCY, StageDeployment
from pipeline.devices import gpu_names
from storage_schemas.errors import ConfigError

_TRIGGER: TypeAdapter[DeploymentTriggerTypes] = TypeAdapter(DeploymentTriggerTypes)

_START = (
    "start one with `prefect server start --host 127.0.0.1`, then "
    "`export PREFECT_API_URL=http://127.0.0.1:4200/api`"
)


def deploy(deployments: tuple[StageDeployment, ...], pool: str) -> dict[str, Any]:
    """Create or update the work pool, all deployments, and a concurrency limit a GPU.

    Returns:
        The pool, the limits and the deployments, for a person to read.

    Raises:
        ConfigError: If there is no server, or a deployment of another project has the same name.
    """
    limits = gpu_names()
    with _server() as client:
        _refuse_other_projects(client, deployments)
        try:
            client.read_work_pool(pool)
        except ObjectNotFound:
            client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
        for name in limits:
            client.upsert_global_concurrency_limit_by_name(name, 1)
    for item in deployments:
        _runner_deployment(item).apply(work_pool_name=pool)
    return {"pool": pool, "gpu_limits": limits, "deployments": described(deployments)}


def serve_forever(deployments: tuple[StageDeployment, ...]) -> None:
    """Run the same schedules and triggers in this process until it is interrupted.

    Runs are child processes; schedules are paused when it ends.

    Raises:
        ConfigError: As `deploy` does.
    """
    with _server() as client:
        _refuse_other_projects(client, deployments)
        for name in gpu_names():
            client.upsert_global_concurrency_limit_by_name(name, 1)
    served = [_runner_deployment(item) for item in deployments]
    serve(*served, print_starting_message=False)


@contextmanager
def _server() -> Iterator[SyncPrefectClient]:
    url = os.environ.get("PREFECT_API_URL")
    if not url:
        raise ConfigError("PREFECT_API_URL", [f"is not set, so there is no server; {_START}"])
    with get_client(sync_client=True) as client:
        failure = client.api_healthcheck()
        if failure is not None:
            problem = f"no server answers at {url} ({failure}); {_START}"
            raise ConfigError("PREFECT_API_URL", [problem])
        yield client


def _refuse_other_projects(
    client: SyncPrefectClient, deployments: tuple[StageDeployment, ...]
) -> None:
    problems = []
    for item in deployments:
        try:
            there = client.read_deployment_by_name(item.full_name)
        except ObjectNotFound:
            continue
        other = there.parameters.get("config")
        if other != item.parameters["config"]:
            problems.append(
                f"{item.full_name} is deployed for {other}; give this project file another name, "
                f"or remove that one: prefect deployment delete {item.full_name}"
            )
    if problems:
        raise ConfigError("deployments", problems)


def _runner_deployment(item: StageDeployment) -> RunnerDeployment:
    module, _, function = item.entrypoint.rpartition(".")
    flow: Flow[..., Any] = getattr(importlib.import_module(module), function)
    found = flow.to_deployment(
        name=item.name,
        parameters=item.parameters,
        description=item.description,
        tags=item.tags,
        schedules=[
            Cron(entry["cron"], timezone=entry["timezone"], slug=entry["slug"])
            for entry in item.schedules
        ],
        triggers=[_TRIGGER.validate_python(trigger) for trigger in item.triggers],
        concurrency_limit=ConcurrencyLimitConfig.model_validate(CONCURRENCY),
        entrypoint_type=EntrypointType.MODULE_PATH,
        paused=False,  # as `serve` leaves them when it ends
    )
    assert isinstance(found, RunnerDeployment)  # a coroutine where there is an event loop
    return found


def described(deployments: tuple[StageDeployment, ...]) -> list[dict[str, Any]]:
    """Return what starts each deployment by itself, for a person to read."""
    return [
        {
            "deployment": item.full_name,
            "starts": [f"{entry['cron']} {entry['timezone']}" for entry in item.schedules]
            + [trigger["name"].partition(": ")[2] for trigger in item.triggers],
            "limit": CONCURRENCY["limit"],
        }
        for item in deployments
    ]
