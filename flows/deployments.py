"""What is deployed: one deployment a stage and one for the whole pipeline, as plain values.

In: schedules, what starts after what, and the form of it in `prefect.yaml`. Left out: talking to a
server (deploying.py). Every night the specialists that lack weights are trained and new images are
labelled; when all teachers have published, the student is trained, then evaluated, then reported.
Every week each byte of the stores is checked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flows.events import (
    LABELS_PUBLISHED,
    SPECIALISTS_TRAINED,
    STUDENT_EVALUATED,
    STUDENT_TRAINED,
    project_name,
    resource_of,
)
from pipeline.config import Project

POOL = "concentrate"

# A run of one stage writes what a second run of it would write too, so the second one waits.
CONCURRENCY = {"limit": 1, "collision_strategy": "ENQUEUE"}

# How far apart the teachers of one set may publish. A teacher that failed one night completes the
# set when it is repaired within the week.
WITHIN_SECONDS = 7 * 24 * 3600


# What a stage's flow is called on the server; stages are the verbs of the command line.
FLOW_NAMES = {
    "run": "concentrate",
    "specialists": "train-specialists",
    "label": "label-teachers",
    "verify": "verify-stores",
    "train": "train-student",
    "evaluate": "evaluate-student",
    "report": "write-report",
}


@dataclass(frozen=True, kw_only=True)
class Times:
    """When the schedules fire.

    Attributes:
        specialists: Cron line for training what lacks weights.
        label: Cron line for labelling what is new.
        verify: Cron line for checking every byte.
        timezone: In which the lines are read.
    """

    specialists: str = "0 1 * * *"
    label: str = "0 2 * * *"
    verify: str = "0 4 * * 0"
    timezone: str = "UTC"


@dataclass(frozen=True, kw_only=True)
class StageDeployment:
    """One deployment.

    Attributes:
        stage: Of the pipeline; `run` is all of them.
        entrypoint: Import path of its flow.
        flow: The flow's name on the server.
        name: The project's name.
        description: For a person.
        parameters: Of every run, unless a run gives others.
        schedules: Name, cron line, timezone, active; in the form of `prefect.yaml`.
        triggers: What starts a run of it; in the form of `prefect.yaml`.
    """

    stage: str
    entrypoint: str
    flow: str
    name: str
    description: str
    parameters: dict[str, Any]
    schedules: tuple[dict[str, Any], ...] = ()
    triggers: tuple[dict[str, Any], ...] = ()

    @property
    def full_name(self) -> str:
        """Return what `prefect deployment run` takes."""
        return f"{self.flow}/{self.name}"

    @property
    def tags(self) -> list[str]:
        """Return what its runs can be found by."""
        return [self.name, self.stage]

    def to_yaml(self, pool: str) -> dict[str, Any]:
        """Return its entry in `prefect.yaml`."""
        entry: dict[str, Any] = {
            "name": self.name,
            "entrypoint": self.entrypoint,
            "description": self.description,
            "tags": self.tags,
            "parameters": self.parameters,
            "concurrency_limit": dict(CONCURRENCY),
            "work_pool": {"name": pool},
        }
        if self.schedules:
            entry["schedules"] = list(self.schedules)
        if self.triggers:
            entry["triggers"] = list(self.triggers)
        return entry


def stage_deployments(
    project: Project, config: str, overrides: list[str], times: Times | None = None
) -> tuple[StageDeployment, ...]:
    """Return everything that is deployed of a project.

    Args:
        project: Read from `config`; its teachers are those on which the student waits.
        config: Path of the project file, as the runs are to be given it.
        overrides: `key.path=value` settings of every run.
        times: When the schedules fire.
    """
    times = times or Times()
    name = project_name(config)
    given = {"config": config} | ({"overrides": overrides} if overrides else {})

    def deployment(stage: str, module: str, function: str, about: str, **more: Any) -> Any:
        return StageDeployment(
            stage=stage,
            entrypoint=f"flows.{module}.{function}",
            flow=FLOW_NAMES[stage],
            name=name,
            description=about,
            parameters=given | more.pop("parameters", {}),
            **more,
        )

    def schedule(slug: str, cron: str) -> dict[str, Any]:
        return {"slug": slug, "cron": cron, "timezone": times.timezone, "active": True}

    trained_here = any(teacher.weights is None for teacher in project.teachers)
    every_teacher = {
        "type": "compound",
        "name": f"{name}: all teachers have published",
        "require": "all",
        "within": WITHIN_SECONDS,
        "triggers": [
            _on(LABELS_PUBLISHED, name, teacher=teacher.name) for teacher in project.teachers
        ],
    }
    return (
        deployment(
            "run", "concentrate", "concentrate", "Everything that is missing or stale, in order."
        ),
        deployment(
            "specialists",
            "train_specialists",
            "train_specialists",
            "Train the teachers that come without weights.",
            schedules=(schedule("nightly", times.specialists),) if trained_here else (),
        ),
        deployment(
            "label",
            "label_teachers",
            "label_teachers",
            "Label what is new with every teacher, and publish.",
            schedules=(schedule("nightly", times.label),),
            triggers=(_on(SPECIALISTS_TRAINED, name, title="specialists are trained"),)
            if trained_here
            else (),
        ),
        deployment(
            "verify",
            "verify_stores",
            "verify_stores",
            "Check every byte of the label stores against its digest.",
            parameters={"depth": "full"},
            schedules=(schedule("weekly", times.verify),),
        ),
        deployment(
            "train",
            "train_student",
            "train_student",
            "Train the student and its control when all teachers have published.",
            triggers=(every_teacher,),
        ),
        deployment(
            "evaluate",
            "evaluate_student",
            "evaluate_student",
            "Evaluate the student, its control and the specialists on unseen images.",
            triggers=(_on(STUDENT_TRAINED, name, title="the student is trained"),),
        ),
        deployment(
            "report",
            "evaluate_student",
            "report_student",
            "Write the HTML report of the newest evaluation.",
            triggers=(_on(STUDENT_EVALUATED, name, title="the student is evaluated"),),
        ),
    )


def _on(
    event: str, project: str, *, teacher: str | None = None, title: str | None = None
) -> dict[str, Any]:
    trigger: dict[str, Any] = {
        "type": "event",
        "match": {"prefect.resource.id": resource_of(event, project, teacher)},
        "expect": [event],
    }
    return trigger if title is None else {**trigger, "name": f"{project}: {title}"}


def prefect_yaml(deployments: tuple[StageDeployment, ...], pool: str = POOL) -> dict[str, Any]:
    """Return the content of a `prefect.yaml` with these deployments.

    There is no `pull` step in it: Prefect then adds one that goes to the folder in which
    `prefect deploy` was called, so that relative paths are found from there.
    """
    return {"name": "concentrate", "deployments": [item.to_yaml(pool) for item in deployments]}
