"""What the flows leave in Prefect for a person to read, apart from tables.

In: Markdown in which nothing that came from outside is markup, and progress while a run works.
Left out: which artifact a flow leaves (the flows).
"""

from __future__ import annotations

import contextlib
import html
import re
import time
from collections.abc import Callable, Sequence
from typing import Any, cast
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact

from storage_schemas.printable import printable

EVERY_SECONDS = 5.0

_SPECIAL = re.compile(r"([\\`*_{}\[\]()#+.!|~>-])")


def literal(value: object) -> str:
    """Return text that Markdown shows as it is, on one line: names, paths and reasons."""
    text = html.escape(printable(value), quote=True).replace("\n", " ")
    return _SPECIAL.sub(r"\\\1", text)


def verification(found: Sequence[dict[str, Any]], depth: str) -> str:
    """Return every problem of every store, under a heading that counts them.

    Args:
        found: One record a store, as `verify_stores` returns them.
        depth: How deep was looked.
    """
    count = sum(len(item["problems"]) for item in found)
    stores = len(found)
    problems = "1 problem" if count == 1 else f"{count or 'no'} problems"
    lines = [f"# Label stores verified ({depth}): {problems} in {stores} stores"]
    for item in found:
        if item["problems"]:
            lines += ["", f"## {literal(item['teacher'])} / {literal(item['split'])}", ""]
            lines += [f"- {literal(problem)}" for problem in item["problems"]]
    if count:
        lines += [
            "",
            "Shards that are named are out of use; `concentrate label` writes exactly them again.",
        ]
    return "\n".join(lines)


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
