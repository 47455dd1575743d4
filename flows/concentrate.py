"""The whole pipeline as one flow: what is missing or stale, in order.

Each stage looks at the stores and records itself; this flow only calls those that have something
to do, since an empty subflow costs a second.
"""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.evaluate_student import evaluate_student, report_student
from flows.label_teachers import labeller, planned_teachers
from flows.outcomes import HOOKS
from flows.parameters import ConfigPath, Overrides, TeacherName, named
from flows.progress import say
from flows.project import Loaded, load
from flows.selection import Stage, select_stages
from flows.train_specialists import train_specialists, untrained
from flows.train_student import train_student
from flows.verify_stores import verify_stores
from pipeline.locations import folder_bytes
from pipeline.store.published import open_published
from storage_schemas.manifest import TRAIN


@flow(name="concentrate", flow_run_name=named("run"), log_prints=False, **HOOKS)
def concentrate(
    config: ConfigPath,
    overrides: Overrides = None,
    only: Stage | None = None,
    from_stage: Stage | None = None,
    teacher: TeacherName = None,
    again: bool = False,
    force: bool = False,
) -> dict[str, Any]:
    """Run what is missing or stale: specialists, labels, student, report.

    Args:
        config: Path of the project file.
        overrides: `key.path=value` settings that replace those of the file.
        only: This stage alone.
        from_stage: This stage and all after it.
        teacher: Train, label and check only this one; the student waits for all.
        again: Train, evaluate and report again although that is done.
        force: Start even where the disk may not have room for all labels.

    Returns:
        What was done: counts by stage, the evaluation, the path of the report; null for a stage
        that was not asked for.
    """
    overrides = overrides or []
    stages = select_stages(only, from_stage, teacher, again)
    loaded = load(config, overrides)
    if teacher is not None:
        loaded.project.teacher(teacher)
    result: dict[str, Any] = {"evaluation": None, "report": None}
    done = {"specialists": 0, "labels": 0, "runs": 0}
    planned = planned_teachers(loaded, teacher, force) if "label" in stages else []
    if "specialists" in stages and untrained(loaded, teacher):
        done["specialists"] = len(train_specialists(config, overrides, teacher))
        planned = planned_teachers(loaded, teacher, force) if "label" in stages else []
    with labeller(loaded.project, planned) as label:
        for name in planned:
            groups = label(name, config, overrides)
            done["labels"] += sum(group["labels"] for group in groups)
    if "verify" in stages:
        verify_stores(config, overrides, teacher)
    if "train" in stages:
        done["runs"] = len(train_student(config, overrides, again))
    if "evaluate" in stages:
        result["evaluation"] = evaluate_student(config, overrides, again)
    if "report" in stages:
        result["report"] = report_student(config, overrides, again)
    if not any(done.values()):
        say("  everything is up to date")
    stores = stored_bytes(loaded) if result["evaluation"] else None
    return {"done": done, "quarantined": loaded.quarantined, "stores": stores, **result}


def stored_bytes(loaded: Loaded) -> dict[str, float]:
    """Return labels, bytes on disk and bytes a label over the training stores."""
    published = open_published(loaded.project, loaded.space, loaded.manifest, TRAIN)
    labels = sum(int(store.commits[:, :, 0].sum()) for store in published.stores)
    size = sum(folder_bytes(store.path) for store in published.stores)
    return {"labels": labels, "bytes": size, "bytes_per_label": size / max(labels, 1)}
