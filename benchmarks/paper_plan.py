"""What a billion labels would take, computed from what was measured here: nothing is run.

Each line is a formula over the plan's own numbers and over figures of `results/*.json` that the
other scripts left; the last column says which. Prints the table as Markdown.

    python benchmarks/paper_plan.py
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.store import shard_layout
from storage_schemas.soft_labels import SoftLabelSchema

RESULTS = Path(__file__).parent / "results"
K = 16
WINDOW_SHARDS = 4  # BatchOrder's default
LABELS_PER_TASK = 1 << 18  # flows/label_teachers.py; a task holds at least one shard, all views
RESNET_50_GPU = 3_000.0  # images a second: an assumption, not measured here
Line = tuple[str, str, str]  # what is computed, its value, from which formula and figures


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is planned.

    Attributes:
        labels: Of all teachers and views.
        views: Labels of an image.
        teachers: Each labels its share of the images (routing `own`).
        classes: Of all teachers.
    """

    labels: int = 10**9
    views: int = 4
    teachers: int = 100
    classes: int = 100_000

    @property
    def images(self) -> int:
        """Rows of the manifest."""
        return self.labels // self.views


def result(name: str) -> dict[str, Any]:
    """Return a measured result."""
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        raise SystemExit(f"{path.name} has not been measured yet: run benchmarks/{name}.py first")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def schema_of(plan: Plan) -> SoftLabelSchema:
    """Return the schema of one teacher's store, for the sizes that follow from it."""
    shard_rows, chunk_rows = shard_layout(plan.images)
    return SoftLabelSchema(
        teacher="one",
        num_rows=plan.images,
        num_views=plan.views,
        k=K,
        num_classes=1,
        selection="sampled",
        shard_rows=shard_rows,
        chunk_rows=chunk_rows,
        classes=("a/b",),
        global_ids=(0,),
    )


def lines(plan: Plan) -> list[Line]:
    """Return the table."""
    stored, prefect, billion = (
        result(name) for name in ("store_bytes", "prefect_overhead", "billion_rows")
    )
    size = stored["bytes_per_label"]["store"]
    schema = schema_of(plan)
    rows_each = plan.images // plan.teachers
    # A teacher's rows are one run: at worst its first and its last shard hold few of them.
    shards_each = (rows_each - 2) // schema.shard_rows + 2
    shards = plan.teachers * shards_each * plan.views
    # A group of work is cut at whole shards with all their views.
    shards_per_task = max(1, round(LABELS_PER_TASK / (schema.shard_rows * plan.views)))
    tasks = plan.teachers * -(-shards_each // shards_per_task)
    labels_per_task = plan.labels / tasks
    manifest = billion["manifest"]
    loading = plan.images / 1e6 * manifest["seconds_per_million_rows"]
    shard_bytes = schema.shard_rows * 48  # 16 ids of 2 bytes, 16 gaps of 1
    window = WINDOW_SHARDS * plan.views * shard_bytes
    task_seconds = labels_per_task / RESNET_50_GPU
    prefect_seconds = (
        tasks * (prefect["seconds_per_task"] + prefect["server_cpu_seconds_per_task"])
        + plan.teachers * prefect["seconds_per_run"]
    )
    hours = plan.labels / RESNET_50_GPU / 3600
    planned = billion["open_plan_resume"]
    return [
        (
            "images, views, teachers, classes",
            f"{plan.images:,} x {plan.views}, {plan.teachers} x "
            f"{plan.classes // plan.teachers:,} classes",
            "the plan",
        ),
        (
            "shards written",
            f"{shards:,} of {schema.shard_rows:,} rows ({shards_each} x {plan.views} views "
            "a teacher)",
            "layout.py; the rows of a teacher are one run, at worst cut at both ends",
        ),
        (
            "files",
            f"{3 * shards + 4 * plan.teachers:,}",
            "ids, gaps and record of a shard, 4 documents of a store",
        ),
        (
            "bytes of labels",
            f"{plan.labels * size / 1e9:.1f} GB ({size:.1f} a label)",
            "store_bytes.json, 1,000 classes a teacher, K = 16",
        ),
        (
            "dense float16 of a teacher's classes, instead",
            f"{plan.labels * 2 * plan.classes / plan.teachers / 1e12:.1f} TB",
            "2 bytes a class",
        ),
        (
            "Prefect tasks",
            f"{tasks:,}, of {labels_per_task / 1e6:.2f} million labels",
            "one shard with all views, or 2^18 labels (label_teachers.py)",
        ),
        (
            "events",
            f"{tasks * prefect['events_per_task']:,.0f}",
            f"prefect_overhead.json: {prefect['events_per_task']:.1f} a task",
        ),
        (
            "Prefect's database",
            f"{tasks * prefect['database_bytes_per_task'] / 1e6:.0f} MB",
            f"prefect_overhead.json: {prefect['database_bytes_per_task'] / 1e3:.0f} kB a task",
        ),
        (
            "Prefect's time",
            f"{prefect_seconds / 3600:.2f} h, "
            f"{100 * prefect_seconds / 3600 / hours:.2f} % of {hours:.0f} GPU hours",
            f"prefect_overhead.json, server's CPU included; {RESNET_50_GPU:,.0f} images/s "
            f"assumed, so {task_seconds:.0f} s a task",
        ),
        (
            "open, plan and resume one store",
            f"{planned['seconds']:.1f} s, {planned['peak_mb']:.0f} MB",
            f"billion_rows.json: {billion['rows']:,} rows, "
            f"{billion['resume']['shards']['of_the_store']:,} shards, "
            f"{billion['resume']['shards']['of_the_teacher']} of them the teacher's",
        ),
        (
            "manifest in every process that plans, labels or trains",
            f"{plan.images * manifest['peak_bytes_per_row'] / 1e9:.0f} GB, "
            f"{loading / 60:.0f} min to load",
            f"billion_rows.json: {manifest['peak_bytes_per_row']:.0f} bytes and "
            f"{manifest['seconds_per_million_rows']:.1f} microseconds a row, of "
            f"{manifest['rows']:,}",
        ),
        (
            "labels in memory of a reader that streams",
            f"{window / 1e6:.0f} MB",
            f"{WINDOW_SHARDS} shards a window x {plan.views} views x {shard_bytes / 1e6:.1f} MB",
        ),
        (
            "row numbers of an epoch's order",
            f"{plan.images * 8 / 1e9:.0f} GB a rank",
            "8 bytes a row (epoch_order.py)",
        ),
        (
            "memory of Prefect's server",
            f"{prefect['server_memory_mb']} MB",
            f"prefect_overhead.json, after {prefect['task_runs']} task runs; its rows are "
            "on the disk",
        ),
        (
            "states that one flow run keeps",
            f"{shards_each} tasks a teacher",
            "a subflow a teacher; Prefect keeps a flow's states until it ends",
        ),
    ]


def markdown(found: list[Line]) -> str:
    """Return the table."""
    cells = [("what", "for the plan", "from"), ("---", "---", "---"), *found]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in vars(Plan()).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    print(markdown(lines(Plan(**vars(parser.parse_args())))))


if __name__ == "__main__":
    main()
