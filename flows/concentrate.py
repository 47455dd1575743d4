"""The whole pipeline as one flow: what is missing or stale, in order.

Each stage looks at the stores and records itself; this flow only calls those that have something
to do, since an empty subflow costs a second.
"""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.evaluate_student import evaluate_student, report_student
from flows.label_teachers import label_teacher, planned_teachers
from flows.progress import say
from flows.project import Loaded, load
from flows.train_specialists import train_specialists, untrained
from flows.train_student import train_student
from flows.verify_stores import verify_stores
from pipeline.locations import folder_bytes
from pipeline.store.published import open_published
from storage_schemas.manifest import TRAIN


@flow(name="concentrate", log_prints=False)
def concentrate(
    config: str, overrides: list[str] | None = None, force: bool = False
) -> dict[str, Any]:
    """Run everything that is missing or stale: specialists, labels, student, report.

    Args:
        config: Path of the project file.
        overrides: `key.path=value` settings that replace those of the file.
        force: Start even where the disk may not have room for all labels.

    Returns:
        What was done: counts by stage, the evaluation, the path of the report.
    """
    overrides = overrides or []
    loaded = load(config, overrides)
    done: dict[str, Any] = {"specialists": 0, "labels": 0, "runs": 0}
    teachers = planned_teachers(loaded, None, force)
    if untrained(loaded):
        done["specialists"] = len(train_specialists(config, overrides))
        teachers = planned_teachers(loaded, None, force)
    for teacher in teachers:
        groups = label_teacher(teacher, config, overrides)
        done["labels"] += sum(group["labels"] for group in groups)
    verify_stores(config, overrides)
    done["runs"] = len(train_student(config, overrides))
    evaluation = evaluate_student(config, overrides)
    report = report_student(config, overrides)
    if not any(done.values()):
        say("  everything is up to date")
    return {
        "done": done,
        "quarantined": loaded.quarantined,
        "stores": stored_bytes(loaded),
        "evaluation": evaluation,
        "report": report,
    }


def stored_bytes(loaded: Loaded) -> dict[str, float]:
    """Return labels, bytes on disk and bytes a label over the training stores."""
    published = open_published(loaded.project, loaded.space, loaded.manifest, TRAIN)
    labels = sum(int(store.commits[:, :, 0].sum()) for store in published.stores)
    size = sum(folder_bytes(store.path) for store in published.stores)
    return {"labels": labels, "bytes": size, "bytes_per_label": size / max(labels, 1)}
