"""The flow that checks the published stores: against their records, and against their teachers.

A failed check is a failed flow run with two artifacts, `verify` (a table of the stores) and
`verify-problems` (every problem in words), and exit code 1 of the command line. Teachers are
imported for the depth `audit` alone.
"""

from __future__ import annotations

from typing import Any, Literal

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE

from flows.artifacts import verification
from flows.outcomes import HOOKS, RETRIES
from flows.parameters import ConfigPath, Depth, Overrides, SampleSize, TeacherName, named
from flows.progress import bar
from flows.project import load, reload
from pipeline.store import open_soft_labels, take_out_of_use, verify_store
from pipeline.store.lock import writer_lock
from pipeline.store.published import SPLIT_NAMES, published_path, rows_to_label
from pipeline.store.published_features import verify_published_features
from pipeline.workspace import Workspace
from storage_schemas.errors import CheckFailedError, ConcentrateError
from storage_schemas.manifest import TEST, TRAIN


@task(cache_policy=NO_CACHE, task_run_name="verify/{teacher}/{split}", tags=["verify"], **RETRIES)
def verify_one(
    teacher: str, split: str, config: str, overrides: list[str], depth: Depth, sample: int
) -> dict[str, Any]:
    """Check one store; returns its problems instead of raising, so that all are checked.

    The features of training rows count with their labels. Damaged shards are taken out of use, so
    that `concentrate label` writes exactly them again.
    """
    found: dict[str, Any] = {
        "teacher": teacher,
        "split": split,
        "depth": depth,
        "labels": 0,
        "checked": 0,
        "same_codes": None,
        "mean_kl": None,
        "max_kl": None,
        "problems": [],
    }
    loaded = reload(config, overrides)
    project = loaded.project
    reading: Literal["quick", "full"] = "full" if depth == "full" else "quick"
    try:
        path = published_path(Workspace(project.workspace), teacher, SPLIT_NAMES.index(split))
        if path is None:
            return found | {"problems": ["nothing published; run `concentrate label`"]}
        store = open_soft_labels(path)
        # What is missing of a partial store that is used on purpose is no damage.
        rows = None
        if not project.student.allow_partial:
            rows = rows_to_label(project, loaded.space, loaded.manifest, store)
        found["labels"] = int(store.commits[:, :, 0].sum())
        found["problems"] = verify_store(store, reading, rows)
        if depth == "audit" and not found["problems"]:
            from pipeline.teachers.audit import audit_store

            audit = audit_store(
                project, teacher, loaded.space, loaded.manifest, store, sample=sample
            )
            first = store.schema.temperatures[0]
            found |= {
                "checked": audit.checked,
                "same_codes": round(audit.same_codes, 4),
                "mean_kl": audit.mean_kl[first],
                "max_kl": audit.max_kl[first],
                "problems": list(audit.problems),
            }
            if audit.damaged:
                with writer_lock(store.path):
                    for view, shard in audit.damaged:
                        store.discard_shard(view, shard)
        elif found["problems"]:  # a sound store is not written, so it may be read-only
            with writer_lock(store.path):
                take_out_of_use(store, reading)
        elif depth == "full":
            found["checked"] = found["labels"]
        if split == SPLIT_NAMES[TRAIN]:
            found["problems"] += verify_published_features(project, teacher, reading, rows)
    except ConcentrateError as error:
        found["problems"] = [*found["problems"], str(error)]
    return found


@flow(name="verify-stores", flow_run_name=named("verify"), log_prints=False, **HOOKS)
def verify_stores(
    config: ConfigPath,
    overrides: Overrides = None,
    teacher: TeacherName = None,
    depth: Depth = "quick",
    sample: SampleSize = 256,
) -> list[dict[str, Any]]:
    """Check the published stores of a project.

    Args:
        config: Path of the project file.
        overrides: `key.path=value` settings that replace those of the file.
        teacher: Only this one.
        depth: quick: commit records, the structure of the files, metadata. full: also every byte
            against its digest. audit: quick, and the teacher run again on a sample of labels.
        sample: Labels of each store that an audit compares.

    Raises:
        CheckFailedError: If a store is damaged, or its labels are not its teacher's; lists every
            problem of every store.
    """
    overrides = overrides or []
    loaded = load(config, overrides)
    if teacher is not None:
        loaded.project.teacher(teacher)
    names = [t.name for t in loaded.project.teachers if teacher in (None, t.name)]
    found = []
    with bar(f"stores verified ({depth})", 2 * len(names)) as line:
        for name in names:
            for split in (TRAIN, TEST):
                found.append(verify_one(name, SPLIT_NAMES[split], config, overrides, depth, sample))
                line.advance()
    create_table_artifact(
        [{**item, "problems": len(item["problems"])} for item in found], key="verify"
    )
    create_markdown_artifact(verification(found, depth), key="verify-problems")
    problems = [
        f"{item['teacher']}/{item['split']}: {problem}"
        for item in found
        for problem in item["problems"]
    ]
    if problems:
        raise CheckFailedError(
            "label stores (shards named are out of use; `concentrate label` writes them again)",
            problems,
        )
    return found
