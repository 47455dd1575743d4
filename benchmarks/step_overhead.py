"""What a training step from the store costs against the same step with hard labels.

Same student, rows, views and loader in one process, the steps taken in turn; only the targets and
the loss differ. Two students: the demo's, at 32 pixels with 1,226 classes in batches of 256, and a
ResNet-18 at 224 pixels on JPEG photographs, decoded in the loop, with 64 classes.

    python benchmarks/step_overhead.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from measure import Figure, benchmark_parser, interleaved, median_ratio, record
from photographs import photo_project
from stages import DEMO, Labelled, labelled, labelled_project
from student_steps import StudentSteps

from pipeline.store.published import open_published
from storage_schemas.manifest import TRAIN

BOUNDS = {
    32: "the loss over 1,226 classes, twice the time of cross-entropy: 2 % of a step; next the "
    "small tensors of a batch's labels",
    224: "forward and backward of the student; the rest is below the noise of the steps",
}


def measured(made: Labelled, rounds: int) -> tuple[dict[str, Any], float]:
    """Return what was measured of a project, and the ratio."""
    published = open_published(made.project, made.space, made.manifest, TRAIN)
    cases = {
        name: StudentSteps(made, published, from_store=name == "store").step
        for name in ("store", "hard")
    }
    seconds = interleaved(cases, rounds=rounds, warmup=3)
    student = made.project.student
    ratio = median_ratio(seconds, "store", "hard")
    values = {
        "objective": student.objective.model_dump(mode="json"),
        "classes": len(made.space),
        "batch_size": student.batch_size,
        "milliseconds_per_step": {
            name: [round(1000 * value, 2) for value in times] for name, times in seconds.items()
        },
        "ratio_store_to_hard": ratio,
    }
    return values, ratio["median"]


def main() -> None:
    parser = benchmark_parser(__doc__)
    arguments = parser.parse_args()
    results = {}
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        glyphs = [f"workspace={folder}/glyphs", "specialists.epochs=1"]
        photos = photo_project(
            Path(folder), images=64, num_classes=64, batch_size=8 if arguments.quick else 32
        )
        projects = {32: labelled_project(DEMO, glyphs), 224: labelled(photos)}
        rounds = {32: 40, 224: 4} if arguments.quick else {32: 300, 224: 15}
        for size, made in projects.items():
            results[f"{size}_pixels"], ratio = measured(made, rounds[size])
            figures.append(
                Figure(
                    what=f"training step from the store, {size} pixels",
                    value=ratio,
                    must_be="at most",
                    target=1.01,
                    against="the same step with hard labels",
                    bound=BOUNDS[size],
                )
            )
    record("step_overhead", results, arguments.out / "step_overhead.json", figures=figures)


if __name__ == "__main__":
    main()
