"""Retries, and the note that a failed run leaves."""

from __future__ import annotations

import importlib
import inspect

import pytest

from storage_schemas.errors import ConfigError, StoreError

pytestmark = pytest.mark.filterwarnings("default")  # Prefect warns at import

MODULES = (
    "train_specialists", "label_teachers", "verify_stores", "train_student", "evaluate_student",
)  # fmt: skip


def test_every_task_retries_io_and_every_flow_explains_itself():
    """No task and no flow of the pipeline is without its retries and hooks."""
    from prefect import Flow, Task

    from flows.outcomes import explain_failure, is_io_error, mark_cancelled

    seen = {"tasks": 0, "flows": 0}
    for name in (*MODULES, "concentrate"):
        module = importlib.import_module(f"flows.{name}")
        for _, found in inspect.getmembers(module, lambda v: isinstance(v, Task | Flow)):
            if isinstance(found, Task):
                seen["tasks"] += 1
                assert found.retry_condition_fn is is_io_error, found.name
                assert (found.retries, found.retry_delay_seconds) == (2, [1, 10]), found.name
                assert not found.persist_result, found.name
            else:
                seen["flows"] += 1
                assert found.on_failure_hooks == [explain_failure], found.name
                assert found.on_crashed_hooks == [mark_cancelled], found.name
    assert seen["tasks"] == 8
    assert seen["flows"] >= 8


def _store_error() -> StoreError:
    error = StoreError("the store cannot be written")
    error.__cause__ = OSError(5, "Input/output error")
    return error


@pytest.mark.flow
@pytest.mark.parametrize(
    ("error", "attempts"),
    [
        (OSError(5, "Input/output error"), 3),
        (_store_error(), 3),
        (StoreError("is being written by another process"), 1),
        (ConfigError("teachers", ["no such teacher"]), 1),
        (ValueError("a bug"), 1),
    ],
    ids=["disk", "store on a bad disk", "locked store", "user's error", "bug"],
)
def test_only_io_is_tried_again(prefect_server: None, error: Exception, attempts: int):
    """A disk that fails gets two more chances; the same wrong input gets none."""
    from prefect import task
    from prefect.cache_policies import NO_CACHE

    from flows.outcomes import RETRIES

    tried = []

    @task(cache_policy=NO_CACHE, **(RETRIES | {"retry_delay_seconds": 0}))
    def work() -> None:
        tried.append(1)
        raise error

    with pytest.raises(type(error)):
        work()
    assert len(tried) == attempts
