"""The flow that trains teachers which come without weights, on their own images."""

from __future__ import annotations

from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from flows.progress import bar
from flows.project import Loaded, load, reload
from pipeline.plan import plan_specialist
from pipeline.teachers.spec import TeacherSpec, resolve_teachers


def untrained(loaded: Loaded, teacher: str | None = None) -> list[TeacherSpec]:
    """Return the specialists that are still to be trained."""
    if teacher is not None:
        loaded.project.teacher(teacher)
    specs = resolve_teachers(loaded.project, loaded.space, loaded.manifest)
    return [
        spec
        for spec in specs
        if teacher in (None, spec.name) and plan_specialist(spec, loaded.manifest) is not None
    ]


@task(cache_policy=NO_CACHE, task_run_name="specialist/{name}")
def train_one(name: str, config: str, overrides: list[str]) -> dict[str, Any]:
    """Train one specialist, from its newest checkpoint where there is one."""
    from pipeline.teachers.specialist import train_specialist

    loaded = reload(config, overrides)
    (spec,) = untrained(loaded, name)
    with bar(f"specialist {name}") as line:
        return train_specialist(loaded.project, spec, loaded.manifest, report=line.step)


@flow(name="train-specialists", log_prints=False)
def train_specialists(
    config: str, overrides: list[str] | None = None, teacher: str | None = None
) -> list[dict[str, Any]]:
    """Train every specialist of a project whose weights are null and not trained yet.

    Args:
        config: Path of the project file.
        overrides: `key.path=value` settings that replace those of the file.
        teacher: Only this one.
    """
    overrides = overrides or []
    names = [spec.name for spec in untrained(load(config, overrides), teacher)]
    return [train_one(name, config, overrides) for name in names]
