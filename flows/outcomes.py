"""What happens when a run does not end well: retries, a note on failure, and cancellation.

A user's error is never retried: the same input fails the same way. A failed run leaves a note
that says what went wrong and how to go on; what was committed before stays, so going on does only
what is missing.
"""

from __future__ import annotations

from typing import Any

from prefect import Flow, State
from prefect.artifacts import Artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, TaskRun
from prefect.states import Cancelled

from flows.artifacts import artifact_key
from flows.deployments import FLOW_NAMES
from pipeline.durable_files import FORBIDDEN, FULL
from pipeline.locations import storage_errors
from storage_schemas.errors import ConcentrateError

_VERBS = {flow: stage for stage, flow in FLOW_NAMES.items()} | {"label-teacher": "label"}


def is_io_error(task: Any, task_run: TaskRun, state: State) -> bool:
    """Tell whether an error may pass by itself: a disk or a network that failed.

    A disk that is full or may not be written stays so: the user is told at once.
    """
    error = state.result(raise_on_failure=False)
    cause = error.__cause__ if isinstance(error, ConcentrateError) else error
    lasting = getattr(cause, "errno", None) in (*FULL, *FORBIDDEN)
    return isinstance(cause, storage_errors()) and not lasting


RETRIES: dict[str, Any] = {
    "retries": 2,
    "retry_delay_seconds": [1, 10],
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": is_io_error,
}


def resume_command(flow: str, parameters: dict[str, Any]) -> str:
    """Return the command line that goes on where a run of a flow stopped."""
    words = ["concentrate", _VERBS[flow], str(parameters["config"])]
    if parameters.get("teacher"):
        words += ["--teacher", str(parameters["teacher"])]
    for override in parameters.get("overrides") or []:
        words += ["--set", f"'{override}'"]
    return " ".join(words)


def explain_failure(flow: Flow[..., Any], flow_run: FlowRun, state: State) -> None:
    """Leave a note: the error, with the teacher, shard and row it names, and how to go on."""
    if flow_run.parent_task_run_id is not None:
        return  # the outermost run fails with the same error, and says so once
    error = state.result(raise_on_failure=False)
    message = (
        str(error) if isinstance(error, ConcentrateError) else f"{type(error).__name__}: {error}"
    )
    command = resume_command(flow.name, flow_run.parameters)
    note = (
        f"# {flow_run.name} failed\n\n```text\n{message}\n```\n\n"
        "What was committed before stays; going on does only what is missing. When the cause is "
        f"mended, run the deployment again, or\n\n```bash\n{command}\n```\n"
    )
    key = artifact_key("failed", _VERBS[flow.name])
    Artifact(type="markdown", key=key, data=note, flow_run_id=flow_run.id).create()


def mark_cancelled(flow: Flow[..., Any], flow_run: FlowRun, state: State) -> None:
    """Call a run cancelled, not crashed, when somebody ended its process with a signal."""
    message = state.message or ""
    if "termination signal" in message.lower() or "interrupt" in message.lower():
        with get_client(sync_client=True) as client:
            cancelled: State = Cancelled(message="Ended by a signal; a new run goes on from here.")
            client.set_flow_run_state(flow_run.id, cancelled, force=True)


HOOKS: dict[str, Any] = {"on_failure": [explain_failure], "on_crashed": [mark_cancelled]}
