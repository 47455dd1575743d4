"""What a run shows on Prefect's server while it works and when it is done."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable
from typing import cast
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact

EVERY_SECONDS = 5.0


def artifact_key(*parts: str) -> str:
    """Return a key of lower-case letters, digits and dashes, which is all that Prefect takes."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")


def progress_artifact(description: str, *parts: str) -> Callable[[float], None]:
    """Create a progress artifact and return what moves it: a call with the share that is done.

    An update costs the server about ten milliseconds, so it is sent every few seconds at most. A
    server that does not answer costs the artifact and not the work.
    """
    artifact = cast(UUID, create_progress_artifact(0.0, artifact_key(*parts), description))
    last = time.monotonic()

    def move(share: float) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < EVERY_SECONDS and share < 1:
            return
        last = now
        with contextlib.suppress(Exception):
            update_progress_artifact(artifact, round(100 * share, 1))

    return move
