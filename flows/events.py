"""Events that say a stage is done, on which a deployment may wait.

Events are hints: they may come twice, late or never. A flow that is started by one reads the
commit records itself and refuses what is not there.

A stage that found everything up to date announces that as well. So a night in which one teacher
of two had new images still completes the set on which the student waits, and a stage that failed
yesterday is tried again today. Only a stage's own run announces: the whole pipeline
(concentrate.py) goes on to the next stage itself.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from prefect.events import emit_event
from prefect.runtime import flow_run

SPECIALISTS_TRAINED = "concentrate.specialists.trained"
LABELS_PUBLISHED = "concentrate.labels.published"
STUDENT_TRAINED = "concentrate.student.trained"
STUDENT_EVALUATED = "concentrate.student.evaluated"


def project_name(config: Path | str) -> str:
    """Return the name of a project: its file's, or its folder's where the file is project.yaml."""
    path = Path(config)
    name = path.resolve().parent.name if path.stem == "project" else path.stem
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.") or "project"


def resource_of(event: str, project: str, teacher: str | None = None) -> str:
    """Return the id of what an event is about: `concentrate.labels.glyphs.greek`."""
    return ".".join(filter(None, (event.rpartition(".")[0], project, teacher)))


def announce(event: str, config: str, *, teacher: str | None = None, **payload: Any) -> None:
    """Say that a stage is done; says nothing inside another flow's run."""
    if flow_run.parent_flow_run_id is not None:
        return
    resource = {
        "prefect.resource.id": resource_of(event, project_name(config), teacher),
        "concentrate.config": config,
    }
    emit_event(event, resource=resource, payload=payload)
