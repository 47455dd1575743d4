"""The flow that trains teachers which come without weights, on their own images."""

from __future__ import annotations

from typing import Any

from prefect import flow, tags, task
from prefect.cache_policies import NO_CACHE

from flows.artifacts import progress_artifact
from flows.events import SPECIALISTS_TRAINED, announce
from flows.gpu import gpu_slot
from flows.outcomes import HOOKS, RETRIES
from flows.parameters import ConfigPath, Overrides, TeacherName, named
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


@task(cache_policy=NO_CACHE, task_run_name="specialist/{name}", tags=["specialists"], **RETRIES)
def train_one(name: str, config: str, overrides: list[str]) -> dict[str, Any]:
    """Train one specialist, from its newest checkpoint where there is one."""
    from pipeline.teachers.specialist import train_specialist

    loaded = reload(config, overrides)
    (spec,) = untrained(loaded, name)
    follow = progress_artifact(f"training of specialist {name}", "specialist", name)
    with gpu_slot(loaded.project), bar(f"specialist {name}", None, follow) as line:
        return train_specialist(loaded.project, spec, loaded.manifest, report=line.step)


@flow(name="train-specialists", flow_run_name=named("specialists"), log_prints=False, **HOOKS)
def train_specialists(
    config: ConfigPath, overrides: Overrides = None, teacher: TeacherName = None
) -> list[dict[str, Any]]:
    """Train every specialist of a project whose weights are null and not trained yet.

    Args:
        config: Path of the project file.
        overrides: `key.path=value` settings that replace those of the file.
        teacher: Only this one.
    """
    overrides = overrides or []
    names = [spec.name for spec in untrained(load(config, overrides), teacher)]
    done = []
    for name in names:
        with tags(name):
            done.append(train_one(name, config, overrides))
    if done:  # otherwise nothing is new to label
        announce(SPECIALISTS_TRAINED, config, teachers=names)
    return done
