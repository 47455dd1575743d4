"""Training from the store against training with the live teachers, step by step.

Four cases take turns over the same batches of photographs: a step from the store; the same step
with live teachers (each runs on its own rows of the batch in inference mode, top-k of its answers,
the same loss); the teachers alone; the student alone. The last two work on pixels in memory and
give T and S: no labels can make an epoch more than (T + S) / S times as fast as live teachers.

    python benchmarks/epoch_speed.py
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from measure import Figure, benchmark_parser, interleaved, record
from photographs import photo_project
from stages import Labelled, labelled
from student_steps import StudentSteps
from torch import Tensor, nn

from pipeline.data.loader import Batch
from pipeline.numerics.soft_label_batch import SoftLabelBatch
from pipeline.objectives.base import TargetBatch
from pipeline.objectives.stored_signals import StoredSignals
from pipeline.store.published import open_published
from pipeline.teachers.labelling import load_teacher
from pipeline.teachers.spec import resolve_teachers
from storage_schemas.manifest import TRAIN


class LiveTeachers:
    """What stored labels replace: the teachers, run on their rows of each batch.

    Args:
        networks: In eval mode.
        supports: (C_t,) global class id of each of their outputs.
        routes: (C + 1, teachers) bool, which rows each answers for; one teacher a row.
        k: Classes that are kept.
        temperature: Of the soft labels.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        supports: Sequence[Tensor],
        routes: npt.NDArray[np.bool_],
        k: int,
        temperature: float,
    ) -> None:
        self.networks, self.supports, self.routes = networks, supports, routes
        self.k, self.temperature = k, temperature

    def answers(self, images: Tensor, labels: Tensor) -> list[tuple[int, Tensor, Tensor]]:
        """Return (teacher, its places in the batch, its logits) of each that has rows."""
        found = []
        routed = torch.from_numpy(self.routes[labels.numpy()])
        for index, network in enumerate(self.networks):
            places = torch.nonzero(routed[:, index]).squeeze(1)
            if len(places):
                with torch.inference_mode():
                    found.append((index, places, network(images[places])))
        return found

    def targets(self, images: Tensor, labels: Tensor) -> TargetBatch:
        """Return what the store would hold of these images."""
        batch = len(images)
        ids = torch.full((1, batch, self.k), -1)
        log_probs = torch.full((1, batch, self.k), -torch.inf)
        log_tail = torch.full((1, batch), -torch.inf)
        teacher = torch.full((1, batch), -1)
        for index, places, logits in self.answers(images, labels):
            top, classes = (logits / self.temperature).log_softmax(dim=1).topk(self.k, dim=1)
            ids[0, places] = self.supports[index][classes]
            log_probs[0, places] = top
            log_tail[0, places] = torch.log1p(-top.exp().sum(dim=1).clamp(max=1))
            teacher[0, places] = index
        soft = SoftLabelBatch(ids=ids, log_probs=log_probs, log_tail=log_tail, teacher=teacher)
        return TargetBatch(labels=labels, soft=soft)


def live_teachers(made: Labelled) -> LiveTeachers:
    """Return the teachers of a project, ready to answer."""
    project = made.project
    specs = resolve_teachers(project, made.space, made.manifest)
    return LiveTeachers(
        [load_teacher(spec, torch.device("cpu")) for spec in specs],
        [torch.from_numpy(spec.label_map.global_ids.astype(np.int64)) for spec in specs],
        np.stack([spec.route for spec in specs], axis=1),
        project.labels.k,
        project.student.objective.label_temperature,
    )


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--teachers", type=int, default=2)
    arguments = parser.parse_args()
    batch_size, size, rounds = (8, 128, 4) if arguments.quick else (16, 224, 12)
    with tempfile.TemporaryDirectory() as folder:
        made = labelled(
            photo_project(
                Path(folder),
                images=64,
                num_classes=64,
                teacher="resnet50",
                teachers=arguments.teachers,
                size=size,
                batch_size=batch_size,
            )
        )
        published = open_published(made.project, made.space, made.manifest, TRAIN)
        live = live_teachers(made)
        from_store = StudentSteps(made, published, from_store=True)
        hard = StoredSignals(made.manifest.labels)
        with_teachers = StudentSteps(made, published, from_store=True, fetch=hard.fetch)
        fixed: Batch = next(StudentSteps(made, published, from_store=True).batches)
        bare = StudentSteps(made, published, from_store=True)

        def live_step() -> None:
            batch = next(with_teachers.batches)
            assert batch.targets.labels is not None
            with_teachers.train(batch, live.targets(batch.images, batch.targets.labels))

        seconds = interleaved(
            {
                "store": from_store.step,
                "live": live_step,
                "teachers": lambda: live.answers(fixed.images, fixed.targets.labels),
                "student": lambda: bare.train(fixed),
            },
            rounds=rounds,
            warmup=2,
        )
    rows = zip(*(seconds[name] for name in ("store", "live", "teachers", "student")), strict=True)
    student_share = float(np.median(np.divide(seconds["student"], seconds["store"])))
    speedup, ideal, share = (
        np.median(
            [
                (
                    live_s / store_s,
                    (teachers_s + student_s) / student_s,
                    live_s / store_s * student_s / (teachers_s + student_s),
                )
                for store_s, live_s, teachers_s, student_s in rows
            ],
            axis=0,
        )
        .round(4)
        .tolist()
    )
    record(
        "epoch_speed",
        {
            "teachers": f"{arguments.teachers} ResNet-50, one for each row",
            "student": "ResNet-18",
            "pixels": size,
            "batch_size": batch_size,
            "seconds_per_step": {
                name: [round(value, 4) for value in times] for name, times in seconds.items()
            },
            "speedup": speedup,
            "ideal": ideal,
        },
        arguments.out / "epoch_speed.json",
        figures=[
            Figure(
                what="epoch from the store against live teachers, as a share of (T + S) / S",
                value=share,
                must_be="at least",
                target=0.97,
                against=f"live ResNet-50 teachers: {speedup:.2f} times as fast, {ideal:.2f} ideal",
                bound=f"the student's forward and backward, {student_share:.0%} of the step, by "
                "the case that runs alone; next decoding its images, which both have and S has not",
            )
        ],
    )


if __name__ == "__main__":
    main()
