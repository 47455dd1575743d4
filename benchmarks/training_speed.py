"""Steps of a student in float32 and bfloat16, plain and compiled, on the processor or a GPU.

Steps of four settings take turns over batches that are in memory, labels from the store: the demo's
student at 32 pixels and a ResNet-18 at 224. On a GPU the fastest then trains from the loader too,
images decoded by worker processes, under torch's profiler: images/s, the share of the time in which
the GPU has nothing to do, and the calls that waited for it. Compiling is not counted: a minute or
more, once a run.

    python benchmarks/training_speed.py
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from measure import benchmark_parser, interleaved, median_ratio, record
from photographs import photo_project
from stages import DEMO, Labelled, labelled, labelled_project
from student_steps import StudentSteps

from pipeline.store.published import PublishedLabels, open_published
from storage_schemas.manifest import TRAIN

SETTINGS = {
    "float32": {"precision": "float32"},
    "float32, compiled": {"precision": "float32", "compile": True},
    "bfloat16": {"precision": "bfloat16"},
    "bfloat16, compiled": {"precision": "bfloat16", "compile": True},
}
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
PROFILED_STEPS = 20


def on_device(step: Callable[[], None], device: str) -> Callable[[], None]:
    """Return the step, ending when the device has done it."""

    def run() -> None:
        step()
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def busy_share(spans: Iterable[tuple[float, float]]) -> float:
    """Return the share of the time between first start and last end that some span covers."""
    covered = 0.0
    reached = None
    ordered = sorted(spans)
    for start, end in ordered:
        reached = start if reached is None else reached
        covered += max(0.0, end - max(start, reached))
        reached = max(end, reached)
    whole = 0.0 if reached is None else reached - ordered[0][0]
    return covered / whole if whole else 0.0


def profiled(step: Callable[[], None]) -> dict[str, Any]:
    """Return what the GPU did during some steps, and which calls waited for it."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for _ in range(PROFILED_STEPS):
            step()
    events = list(profiler.events() or ())
    work = [event for event in events if event.device_type == DeviceType.CUDA]
    busy = busy_share((event.time_range.start, event.time_range.end) for event in work)
    return {
        "share_of_time_the_gpu_waits": round(1 - busy, 4),
        "calls_that_wait_for_it": dict(Counter(e.name for e in events if e.name in WAITS)),
        "steps": PROFILED_STEPS,
    }


def measured(
    made: Labelled, published: PublishedLabels, device: str, rounds: int
) -> dict[str, Any]:
    """Return the time of a step under each setting, and its ratio to float32."""
    students = {
        name: StudentSteps(
            made,
            published,
            from_store=True,
            config=made.project.student.model_copy(update=settings),
            device=device,
        )
        for name, settings in SETTINGS.items()
    }
    batches = list(islice(next(iter(students.values())).batches, 4))
    cases = {}
    for name, student in students.items():
        turn = cycle(batches)
        cases[name] = on_device(lambda s=student, t=turn: s.train(next(t)), device)
    seconds = interleaved(cases, rounds=rounds, warmup=4)
    ratios = {name: median_ratio(seconds, name, "float32") for name in SETTINGS}
    found: dict[str, Any] = {
        "batch_size": len(batches[0].images),
        "classes": len(made.space),
        "milliseconds_per_step": {
            name: [round(1000 * value, 2) for value in times] for name, times in seconds.items()
        },
        "over_float32": ratios,
    }
    if device == "cuda":
        fastest = min(ratios, key=lambda name: ratios[name]["median"])
        found["from_the_loader"] = from_loader(made, published, fastest, rounds)
    return found


def from_loader(
    made: Labelled, published: PublishedLabels, name: str, rounds: int
) -> dict[str, Any]:
    """Return how a student trains on a GPU where worker processes decode its images."""
    student = StudentSteps(
        made,
        published,
        from_store=True,
        config=made.project.student.model_copy(update=SETTINGS[name]),
        device="cuda",
        num_workers=os.cpu_count() or 1,
    )
    seconds = interleaved({name: on_device(student.step, "cuda")}, rounds=rounds, warmup=8)[name]
    images = made.project.student.batch_size * len(seconds) / sum(seconds)
    return {"setting": name, "images_per_second": round(images), **profiled(student.step)}


def main() -> None:
    parser = benchmark_parser(__doc__)
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rounds = 5 if arguments.quick else 25
    batch_size = 256 if device == "cuda" else 32
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        glyphs = [f"workspace={folder}/glyphs", "specialists.epochs=1"]
        photos = photo_project(
            Path(folder), images=16 * batch_size, num_classes=64, batch_size=batch_size
        )
        for size, made in ((32, labelled_project(DEMO, glyphs)), (224, labelled(photos))):
            published = open_published(made.project, made.space, made.manifest, TRAIN)
            found[f"{size}_pixels"] = measured(made, published, device, rounds)
    record("training_speed", {"device": device, **found}, arguments.out / "training_speed.json")


if __name__ == "__main__":
    main()
