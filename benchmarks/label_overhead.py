"""What labelling costs over a bare loop that decodes, transforms and forwards the same images.

Both go through the same loader and teacher in one process, taken in turn. Labelling adds top-k,
the code, compression, checksums, fsync and commit records. Prefect's start is not in it: it is a
fixed cost a run, measured in the README. Two cases: a ResNet-18 on JPEG photographs at 224 pixels,
and, without a target, the demo's first teacher, which needs 68 microseconds an image. Memory is
the high-water mark of a process of its own for each side.

    python benchmarks/label_overhead.py
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import Figure, benchmark_parser, interleaved, median_ratio, peak_mb, record
from photographs import photo_project
from stages import DEMO

from pipeline.config import Project, load_project
from pipeline.data import load_label_space, load_manifest, update_manifest
from pipeline.data.routing import routed_rows
from pipeline.store import SoftLabelStore
from pipeline.teachers.labelling import label_shards, load_teacher, teacher_reader
from pipeline.teachers.row_batches import row_batches
from pipeline.teachers.spec import TeacherSpec, resolve_teacher
from pipeline.teachers.specialist import train_specialist
from pipeline.teachers.stores import missing_work, open_or_create, store_path, store_schema
from storage_schemas.manifest import TRAIN, Manifest


@dataclass(frozen=True)
class FirstTeacher:
    """The first teacher of a project and all that it is to label."""

    project: Project

    @cached_property
    def manifest(self) -> Manifest:
        """The rows."""
        return load_manifest(self.project.workspace)

    @cached_property
    def spec(self) -> TeacherSpec:
        """The teacher."""
        space = load_label_space(self.project.workspace)
        return resolve_teacher(self.project, self.project.teachers[0], space, self.manifest)

    @cached_property
    def rows(self) -> np.ndarray:
        """What it labels, in every view."""
        return routed_rows(self.manifest, TRAIN, self.spec.route)

    @property
    def labels(self) -> int:
        """How many it is to give."""
        return len(self.rows) * self.project.views.count

    def prepare(self) -> None:
        """List the images, and train the teacher where it comes without weights."""
        update_manifest(self.project)
        if not self.spec.is_ready:
            train_specialist(self.project, self.spec, self.manifest)

    def new_store(self) -> SoftLabelStore:
        """Return an empty store, in place of what there is."""
        space = load_label_space(self.project.workspace)
        schema = store_schema(self.project, self.spec, space, self.manifest, TRAIN)
        shutil.rmtree(store_path(self.project, schema), ignore_errors=True)
        return open_or_create(self.project, schema, space)

    def label(self, store: SoftLabelStore | None = None) -> None:
        """Label everything."""
        store = self.new_store() if store is None else store
        work = missing_work(self.project, store.schema, self.spec, self.manifest)
        label_shards(self.project, self.spec, self.manifest, store, work)

    def bare(self) -> None:
        """Forward everything, and keep nothing."""
        device = torch.device("cpu")
        teacher = load_teacher(self.spec, device)
        reader = teacher_reader(self.project, self.spec, self.manifest, TRAIN)
        views = range(self.project.views.count)
        for pixels in row_batches(self.project, reader, self.spec, self.rows, views, device):
            for view in views:
                with torch.inference_mode():
                    teacher(pixels[view])


def peak_of(part: str, config: Path) -> dict[str, float]:
    """Return the memory of a process before it does one of the two sides, and its peak, in MB."""
    command = [sys.executable, __file__, "--peak-of", part, str(config)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def measured(teacher: FirstTeacher, rounds: int) -> dict[str, Any]:
    """Time labelling into a new store against the bare loop."""
    teacher.prepare()
    cases: dict[str, Callable[[], None]] = {"label": teacher.label, "bare": teacher.bare}
    seconds = interleaved(cases, rounds=rounds)
    return {
        "labels": teacher.labels,
        "classes": len(teacher.spec.label_map),
        "seconds": {name: [round(value, 3) for value in times] for name, times in seconds.items()},
        "labels_per_second": round(teacher.labels / sorted(seconds["label"])[rounds // 2], 1),
        "ratio_label_to_bare": median_ratio(seconds, "label", "bare"),
    }


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--peak-of", nargs=2, metavar=("label|bare", "CONFIG"))
    arguments = parser.parse_args()
    if arguments.peak_of:
        part, config = arguments.peak_of
        before = peak_mb()
        getattr(FirstTeacher(load_project(Path(config))), part)()
        print(json.dumps({"libraries": before, "peak": peak_mb()}))
        return
    rounds, images = (3, 64) if arguments.quick else (5, 384)
    with tempfile.TemporaryDirectory() as folder:
        project = photo_project(Path(folder), images=images, num_classes=64)
        photos = measured(FirstTeacher(project), rounds)
        config = Path(folder) / "project.yaml"
        memory = {part: peak_of(part, config) for part in ("label", "bare")}
        photos["memory_mb"] = memory
    with tempfile.TemporaryDirectory() as folder:
        demo = load_project(DEMO, [f"workspace={folder}", "specialists.epochs=1"])
        glyphs = measured(FirstTeacher(demo), rounds)
    record(
        "label_overhead",
        {"photos": photos, "glyphs": glyphs},
        arguments.out / "label_overhead.json",
        figures=[
            Figure(
                what="labelling, ResNet-18 at 224 pixels",
                value=photos["ratio_label_to_bare"]["median"],
                must_be="at most",
                target=1.03,
                against="a bare loop of the same teacher and loader; with the demo's teacher of "
                f"32 pixels {glyphs['ratio_label_to_bare']['median']:.2f} (no target)",
                bound="the teacher's forward, nine tenths of the processor time; next decoding",
            ),
            Figure(
                what="peak memory of labelling, ResNet-18 at 224 pixels",
                value=round(memory["label"]["peak"] / memory["bare"]["peak"], 3),
                must_be="at most",
                target=1.2,
                against="the process of the bare loop",
                bound=f"libraries, {memory['label']['libraries']:.0f} of "
                f"{memory['label']['peak']:.0f} MB; network, pixels, activations, which both hold",
            ),
        ],
    )


if __name__ == "__main__":
    main()
