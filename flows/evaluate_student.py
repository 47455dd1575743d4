"""The flows that evaluate the student on unseen images and write the report.

The teachers' answers come from their test stores: no teacher is loaded here either.
"""

from __future__ import annotations

from typing import Any

from prefect import flow, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from flows.events import STUDENT_EVALUATED, announce
from flows.gpu import gpu_slot
from flows.outcomes import HOOKS, RETRIES
from flows.parameters import ConfigPath, Overrides, named
from flows.progress import bar
from flows.project import Loaded, load, reload
from flows.train_student import published_runs
from pipeline.store.published import PublishedLabels, open_published
from pipeline.training.runs import (
    REPORT_VERSION,
    StudentRun,
    evaluation_fingerprint,
    evaluation_path,
    report_is_current,
    stale_reason,
)
from pipeline.workspace import Workspace, read_record, write_record
from storage_schemas.errors import TrainingError
from storage_schemas.manifest import TEST


def finished_runs(loaded: Loaded) -> tuple[list[StudentRun], PublishedLabels, str]:
    """Return the finished runs, the test labels and the evaluation's fingerprint.

    Raises:
        TrainingError: If a run is not finished.
    """
    _, runs = published_runs(loaded)
    for run in runs:
        reason = stale_reason(run)
        if reason is not None:
            raise TrainingError(
                f"{run.folder.parent.name} is not trained for these settings ({reason}); "
                "run `concentrate train` first"
            )
    tests = open_published(loaded.project, loaded.space, loaded.manifest, TEST)
    samples = loaded.project.report.samples
    return runs, tests, evaluation_fingerprint(runs, loaded.manifest, tests, samples)


@task(cache_policy=NO_CACHE, task_run_name="evaluate", tags=["evaluate"], **RETRIES)
def evaluate(config: str, overrides: list[str]) -> dict[str, Any]:
    """Evaluate the student, its control and the specialists; write `evaluation.json`."""
    from pipeline.training.evaluation import evaluate_runs

    loaded = reload(config, overrides)
    runs, tests, digest = finished_runs(loaded)
    with gpu_slot(loaded.project), bar("evaluation") as line:
        found = evaluate_runs(
            loaded.project, runs, loaded.space, loaded.manifest, tests, report=line.set
        )
    write_record(evaluation_path(runs[0]), {"fingerprint": digest, **found})
    return {"student_top1": found["runs"][0]["top1"], "images": found["runs"][0]["images"]}


@flow(name="evaluate-student", flow_run_name=named("evaluate"), log_prints=False, **HOOKS)
def evaluate_student(
    config: ConfigPath, overrides: Overrides = None, again: bool = False
) -> dict[str, Any]:
    """Evaluate the newest student on the test images, unless that is done.

    Args:
        config: Path of the project file.
        overrides: `key.path=value` settings that replace those of the file.
        again: Evaluate it also where that is done.

    Returns:
        The evaluation.
    """
    overrides = overrides or []
    runs, _, digest = finished_runs(load(config, overrides))
    record = read_record(evaluation_path(runs[0]))
    if again or record is None or record.get("fingerprint") != digest:
        evaluate(config, overrides)
        record = read_record(evaluation_path(runs[0]))
        assert record is not None
        create_markdown_artifact(markdown_summary(record), key="evaluation")
    announce(STUDENT_EVALUATED, config, top1=record["runs"][0]["top1"])
    return record


@task(cache_policy=NO_CACHE, task_run_name="report", tags=["report"], **RETRIES)
def write_page(config: str, overrides: list[str]) -> str:
    """Write the HTML page and return its path."""
    from pipeline.report import write_report

    loaded = reload(config, overrides)
    runs, _, digest = finished_runs(loaded)
    evaluation = read_record(evaluation_path(runs[0]))
    assert evaluation is not None
    folder = Workspace(loaded.project.workspace).report
    with bar("report"):
        page = write_report(loaded.project, evaluation, folder)
    write_record(folder / "report.json", {"evaluation": digest, "version": REPORT_VERSION})
    return str(page)


@flow(name="write-report", flow_run_name=named("report"), log_prints=False, **HOOKS)
def report_student(config: ConfigPath, overrides: Overrides = None, again: bool = False) -> str:
    """Write the report of the newest evaluation, unless it is the newest report already.

    Args:
        config: Path of the project file.
        overrides: `key.path=value` settings that replace those of the file.
        again: Write it also where that is done.

    Returns:
        The path of the page.
    """
    overrides = overrides or []
    loaded = load(config, overrides)
    runs, _, digest = finished_runs(loaded)
    record = read_record(evaluation_path(runs[0]))
    if record is None or record.get("fingerprint") != digest:
        raise TrainingError("this student is not evaluated yet; run `concentrate evaluate` first")
    workspace = Workspace(loaded.project.workspace)
    page = workspace.report / "index.html"
    if again or not report_is_current(workspace, digest):
        write_page(config, overrides)
        create_markdown_artifact(markdown_summary(record), key="report")
        create_link_artifact(page.as_uri(), link_text="index.html", key="report-page")
    return str(page)


def markdown_summary(evaluation: dict[str, Any]) -> str:
    """Return the evaluation's main numbers as a markdown table."""
    lines = [
        "| run | top-1 | top-5 | inside vertical | mpvap | calibration error | parameters |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {run['role']} | {run['top1']} | {run['top5']} | {run['top1_inside']} | {run['mpvap']} "
        f"| {run['calibration_error']} | {run['cost']['parameters']:,} |"
        for run in evaluation["runs"]
    ]
    return "\n".join(lines)
