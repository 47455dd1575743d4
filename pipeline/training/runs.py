"""What identifies a training run, and which runs a project has. Imports no torch.

In: the student's run and its control's, their fingerprints, and why a run is stale. Left out: the
training itself (students.py).
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pipeline.config import HardLabels, MultiLabel, Project, StudentConfig
from pipeline.reasons import class_changes, setting_changes
from pipeline.store.lock import writer_lock
from pipeline.store.published import PublishedLabels
from pipeline.training.initial_weights import initial_weights
from pipeline.workspace import Workspace, read_record
from storage_schemas.fingerprint import fingerprint
from storage_schemas.label_space import LabelSpace
from storage_schemas.manifest import TEST, TRAIN, Manifest

Role = Literal["student", "control"]

# Raised when the same student would be evaluated to other numbers.
EVALUATION_VERSION = 1

# Raised when the page of the report changes; `report` then writes it again.
REPORT_VERSION = 3

# Cadences and memory do not change the weights; devices change them by rounding, since the batch
# of a step is that of all devices together.
_NOT_IN_FINGERPRINT = {
    "name",
    "checkpoint_every_steps",
    "keep_checkpoints",
    "log_every_steps",
    "control",
    "memory_budget_mb",
    "allow_partial",  # which labels were there is told by the stores and pairs
    "devices",
    "init",  # its weights count, by their digest
}


@dataclass(frozen=True, kw_only=True)
class StudentRun:
    """One training run: a student, or its control.

    Attributes:
        role: `control` is the same network, rows, views and steps with hard labels.
        config: With the objective of the role.
        parts: Everything that the weights depend on, as JSON.
        folder: Of the run.
        classes: All classes, by which a change of the label space is told.
        num_rows: Rows it is trained on.
    """

    role: Role
    config: StudentConfig
    parts: dict[str, Any]
    folder: Path
    classes: tuple[str, ...]
    num_rows: int

    @property
    def fingerprint(self) -> str:
        """Digest of the parts; names the folder."""
        return fingerprint(self.parts)

    @property
    def weights(self) -> Path:
        """The trained weights."""
        return self.folder / "weights.safetensors"

    @property
    def record(self) -> dict[str, Any] | None:
        """What the finished run says of itself; None before it is finished."""
        return read_record(self.folder / "student.json") if self.weights.exists() else None


def student_run(
    project: Project,
    role: Role,
    space: LabelSpace,
    manifest: Manifest,
    published: PublishedLabels,
) -> StudentRun:
    """Return the run that the project file describes now."""
    config = project.student
    name = config.name
    if role == "control":
        sigmoid = config.objective.activation == "sigmoid"
        objective = MultiLabel(name="multi_label") if sigmoid else HardLabels(name="hard_labels")
        config = config.model_copy(
            update={"objective": objective, "init": None, "auxiliary": (), "curriculum": None}
        )
        name = f"{config.name}-control"
    needs_labels = bool(config.objective.reads)
    rows = training_rows(manifest, published)
    parts = {
        "role": role,
        "student": config.model_dump(mode="json", exclude=_NOT_IN_FINGERPRINT),
        "label_space": space.digest,
        "rows": manifest.rows_digest(rows),
        "recipe": project.views.digest,
        "stores": published.identity() if needs_labels else [],
    }
    if "features" in config.objective.reads:
        parts["features"] = published.feature_identity()
    if config.init is not None:
        parts["init"] = initial_weights(project, published, config.init).digest
    if published.available is not None:
        parts["available"] = published.available.digest
    folder = Workspace(project.workspace).student(name, fingerprint(parts))
    return StudentRun(
        role=role,
        config=config,
        parts=parts,
        folder=folder,
        classes=space.classes,
        num_rows=len(rows),
    )


def student_runs(
    project: Project, space: LabelSpace, manifest: Manifest, published: PublishedLabels
) -> list[StudentRun]:
    """Return the student's run and, unless it is switched off, its control's."""
    roles: list[Role] = ["student"]
    student = project.student
    is_control = student.objective.name in ("hard_labels", "multi_label")
    if student.control and (not is_control or student.auxiliary):
        roles.append("control")
    return [student_run(project, role, space, manifest, published) for role in roles]


def training_rows(manifest: Manifest, published: PublishedLabels) -> npt.NDArray[np.int64]:
    """Rows that some teacher labels; student and control train on the same ones."""
    if published.available is not None:
        return published.available.rows
    rows = manifest.rows(TRAIN)
    if published.routes is None:
        return rows
    routed: npt.NDArray[np.bool_] = np.logical_or.reduce(published.routes, axis=1)
    return rows[routed[manifest.labels[rows]]]


def evaluation_fingerprint(
    runs: list[StudentRun], manifest: Manifest, published: PublishedLabels, samples: int
) -> str:
    """Return the digest of everything that an evaluation depends on.

    Args:
        runs: Student first, then its control where there is one.
        manifest: Its test rows.
        published: The teachers' test stores.
        samples: Images shown in the report.
    """
    return fingerprint(
        {
            "version": EVALUATION_VERSION,
            "runs": [run.fingerprint for run in runs],
            "rows": manifest.rows_digest(manifest.rows(TEST)),
            "stores": published.identity(),
            "samples": samples,
        }
    )


def evaluation_path(run: StudentRun) -> Path:
    """Return where the evaluation of a student and its control is kept."""
    return run.folder / "evaluation.json"


def report_is_current(workspace: Workspace, evaluation: str) -> bool:
    """Tell whether the newest report shows this evaluation, in this version of the page."""
    record = read_record(workspace.report / "report.json") or {}
    wanted = {"evaluation": evaluation, "version": REPORT_VERSION}
    return record == wanted and (workspace.report / "index.html").is_file()


def discard_run(run: StudentRun) -> None:
    """Forget a run, finished or interrupted, so that it is trained from its first step.

    Raises:
        StoreError: If another process trains it now.
    """
    if not run.folder.exists():
        return
    with writer_lock(run.folder):
        # The record goes first: without it nothing of the folder counts as finished.
        (run.folder / "student.json").unlink(missing_ok=True)
        shutil.rmtree(run.folder)


def stale_reason(run: StudentRun) -> str | None:
    """Return why a run must be done, or None when it is finished."""
    if run.record is not None:
        return None
    if (run.folder / "checkpoints").exists():
        return "training was interrupted; it goes on from the newest checkpoint"
    records = [read_record(path) for path in run.folder.parent.glob("*/student.json")]
    finished: list[dict[str, Any]] = [
        record for record in records if record is not None and isinstance(record.get("parts"), dict)
    ]
    if not finished:
        return "not trained yet"
    nearest = min((_changes(record, run) for record in finished), key=len)
    return f"changed since the nearest finished run: {', '.join(nearest)}"


_PARTS = {
    "rows": "other training rows",
    "recipe": "views",
    "available": "other labels are available",
    "init": "weights to start from",
}


def _changes(record: dict[str, Any], run: StudentRun) -> list[str]:
    old, new = record["parts"], run.parts
    found: list[str] = []
    for name in sorted({*old, *new}):
        before, after = old.get(name), new.get(name)
        if before == after:
            continue
        if name == "student":
            found += setting_changes(name, before, after)
        elif name in ("stores", "features"):
            what = "labels" if name == "stores" else "features"
            known = {tuple(store) for store in before or ()}
            found += [f"{what} of {store[0]}" for store in after or () if tuple(store) not in known]
        elif name == "label_space" and "label_space" in record:
            changes = class_changes(record["label_space"]["classes"], run.classes)
            found += changes or ["is-a parents of classes"]
        elif name == "rows" and record.get("rows", run.num_rows) != run.num_rows:
            found.append(f"training rows {record['rows']:,} -> {run.num_rows:,}")
        else:
            found.append(_PARTS.get(name, name))
    return found or ["something"]
