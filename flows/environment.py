"""Prefect's environment, set before Prefect is imported.

Quiet by default, telemetry off, loopback only, a start-up time-out that a cold disk can keep, and
a Prefect home inside the workspace (for one in a bucket: in the user's cache), so that a project
neither finds nor leaves anything in the user's own. Where PREFECT_API_URL is set, that server is
used; else Prefect starts one, which must not outlive the command. Every value can be overridden
from outside.
"""

from __future__ import annotations

import os
from pathlib import Path

from flows.orphans import end_with_this_process
from pipeline.locations import local_folder

_DEFAULTS = {
    "PREFECT_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_TO_API_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_CLI_PROMPT": "false",
    "DO_NOT_TRACK": "1",
}


def prepare_environment(workspace: Path) -> None:
    """Set what is not set yet; call it before anything imports Prefect."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    if "PREFECT_API_URL" in os.environ:
        return
    end_with_this_process()
    if "PREFECT_PROFILE" not in os.environ:
        home = Path(
            os.environ.setdefault("PREFECT_HOME", str(local_folder(workspace) / ".prefect"))
        )
        # Prefect does not make missing parents, and then waits for its server until the time-out.
        home.mkdir(parents=True, exist_ok=True)
