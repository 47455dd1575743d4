"""Types of the flows' parameters: Prefect makes a form of them and refuses what does not fit.

The text under each field of the form is that of the flow's docstring.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

from prefect.runtime import flow_run
from pydantic import Field

from flows.events import project_name
from pipeline.config.base import Name

ConfigPath = Annotated[str, Field(min_length=1, examples=["/data/pets/project.yaml"])]
Overrides = (
    Annotated[
        list[Annotated[str, Field(pattern=r"^[A-Za-z_][\w.-]*=")]],
        Field(examples=[["student.epochs=20"]]),
    ]
    | None
)
TeacherName = Name | None
Depth = Literal["quick", "full", "audit"]
SampleSize = Annotated[int, Field(ge=1)]


def named(stage: str) -> Callable[[], str]:
    """Return the namer of a stage's runs: `label/glyphs`, `label/glyphs/greek` for one teacher."""

    def name() -> str:
        given = flow_run.parameters
        parts = (stage, project_name(given["config"]), given.get("teacher"))
        return "/".join(filter(None, parts))

    return name
