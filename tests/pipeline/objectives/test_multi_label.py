"""Labels with all that they imply: the loss, who is trained on it, and how it is judged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch.nn import functional

from pipeline.config import KnowledgeConcentration, MultiLabel, Project, load_project
from pipeline.numerics import SoftLabelBatch
from pipeline.objectives import build_objective
from pipeline.objectives.base import LabelContext, StudentOutput, TargetBatch
from pipeline.store.published import PublishedLabels
from pipeline.teachers.spec import resolve_teacher
from pipeline.training.evaluation import evaluate_predictions
from pipeline.training.prediction import Predictions
from pipeline.training.runs import student_run
from storage_schemas.errors import ConfigError
from storage_schemas.hierarchy import label_closure
from storage_schemas.label_space import LabelSpace
from storage_schemas.manifest import TRAIN, Manifest

CLASSES = ("bird/any", "bird/robin", "bird/wren", "cat/any", "cat/tabby")
PARENTS = {"bird/robin": ("bird/any",), "bird/wren": ("bird/any",), "cat/tabby": ("cat/any",)}
SPACE = LabelSpace(classes=CLASSES, parents=PARENTS)
CONTEXT = LabelContext(
    num_classes=len(SPACE),
    vertical_of=torch.from_numpy(SPACE.vertical_of.astype(np.int64)),
    supports=(torch.arange(3), torch.arange(3, 5)),
    closure=torch.from_numpy(label_closure(SPACE)),
)
LABELS = torch.tensor([1, 4, -1, 2])
TARGETS = torch.tensor(
    [[1, 1, 0, 0, 0], [0, 0, 0, 1, 1], [0, 0, 0, 0, 0], [1, 0, 1, 0, 0]], dtype=torch.float64
)


def random_output() -> StudentOutput:
    """Float64 logits of four images."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, len(SPACE), generator=generator, dtype=torch.float64)
    return StudentOutput(logits=logits, features=logits)


def dense_loss(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy, summed over classes."""
    return functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none").sum(1)


def test_the_target_is_the_closure_of_the_label() -> None:
    """The loss equals dense binary cross-entropy with ancestors as ones, over labelled images."""
    output = random_output()
    found = build_objective(MultiLabel(name="multi_label"), CONTEXT)(
        output, TargetBatch(labels=LABELS)
    )
    labelled = LABELS >= 0
    expected = dense_loss(output.logits[labelled], TARGETS[labelled]).mean()
    torch.testing.assert_close(found["task_loss"], expected)


def test_mixed_images_count_both_closures() -> None:
    """Classes above both images are wanted in full, the others at the weight of their image."""
    output, partners = random_output(), torch.tensor([2, 1, 1, 4])
    weight = torch.tensor([0.25, 1.0, 0.5, 0.6])
    targets = TargetBatch(labels=LABELS, partner_labels=partners, mix_weight=weight)
    found = build_objective(MultiLabel(name="multi_label"), CONTEXT)(output, targets)
    wanted = torch.tensor(
        [[1, 0.25, 0.75, 0, 0], [0, 0, 0, 1, 1], [0.6, 0, 0.6, 0.4, 0.4]], dtype=torch.float64
    )
    expected = dense_loss(output.logits[LABELS >= 0], wanted).mean()
    torch.testing.assert_close(found["task_loss"], expected, rtol=1e-6, atol=1e-6)


def test_hard_labels_beside_distillation_have_ancestors_too() -> None:
    """`hard_weight` of the sigmoid form adds the very loss of the control."""
    output = random_output()
    absent = torch.full((1, 4), -1)
    soft = SoftLabelBatch(
        ids=absent.unsqueeze(2),
        log_probs=torch.full((1, 4, 1), -torch.inf),
        log_tail=torch.full((1, 4), -torch.inf),
        teacher=absent,
    )
    settings = KnowledgeConcentration(
        name="knowledge_concentration", form="sigmoid", hard_weight=0.5
    )
    terms = build_objective(settings, CONTEXT)(output, TargetBatch(labels=LABELS, soft=soft))
    alone = build_objective(MultiLabel(name="multi_label"), CONTEXT)
    control = alone(output, TargetBatch(labels=LABELS))["task_loss"]
    torch.testing.assert_close(terms["task_loss"], 0.5 * control)


def project_of(folder: Path, **settings: object) -> Project:
    """A project of one specialist that is trained here."""
    tree = {
        "workspace": str(folder),
        "data": {"source": "image_folder", "root": str(folder)},
        "teachers": [
            {
                "name": "bird",
                "builder": "torchvision:resnet18",
                "classes": {"vertical": "bird"},
            }
        ],
    }
    (folder / "project.yaml").write_text(yaml.safe_dump(tree | settings))
    return load_project(folder / "project.yaml")


def manifest() -> Manifest:
    """Three training rows."""
    return Manifest.empty().appended(
        keys=["a", "b", "c"],
        labels=np.array([1, 2, 4], np.int32),
        splits=np.full(3, TRAIN, np.uint8),
        digests=np.zeros((3, 16), np.uint8),
    )


SIGMOID = {
    "labels": {"activation": "sigmoid"},
    "student": {"objective": {"name": "knowledge_concentration", "form": "sigmoid"}},
}


def test_sigmoid_teachers_are_other_teachers(tmp_path: Path) -> None:
    """Activation and parents are part of what a specialist's weights depend on, softmax is not."""
    flat = LabelSpace(classes=CLASSES)
    specs = [
        resolve_teacher(project, project.teachers[0], space, manifest())
        for project, space in (
            (project_of(tmp_path), flat),
            (project_of(tmp_path, **SIGMOID), flat),
            (project_of(tmp_path, **SIGMOID), SPACE),
        )
    ]
    assert not {"activation", "parents"} & set(specs[0].training_parts)
    assert len({spec.folder for spec in specs}) == 3
    assert specs[2].closure is not None
    assert specs[2].closure.tolist() == [[0, -1], [1, 0], [2, 0]]


def test_the_control_of_a_sigmoid_student_is_multi_label(tmp_path: Path) -> None:
    """Its control differs in the labels alone; that of a softmax student stays as it was."""
    for settings, name in (({}, "hard_labels"), (SIGMOID, "multi_label")):
        project = project_of(tmp_path, **settings)
        run = student_run(project, "control", SPACE, manifest(), PublishedLabels())
        assert run.config.objective.name == name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": {"source": "glyphs", "hierarchy": True}}, "classes with is-a parents need"),
        (SIGMOID | {"specialists": {"label_smoothing": 0.1}}, "label_smoothing of specialists"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    tmp_path: Path, settings: dict[str, object], message: str
) -> None:
    """A softmax cannot name a class and its parent, and binary cross-entropy is not smoothed."""
    with pytest.raises(ConfigError, match=message):
        project_of(tmp_path, **settings)


def test_inner_classes_count_in_mpvap_and_are_no_answer() -> None:
    """top-1 is among leaves, although inner classes score higher; mpvap wants them ranked right."""
    labels = torch.tensor([1, 2, 4])
    logits = torch.full((3, len(SPACE)), -5.0)
    closure = label_closure(SPACE)
    for row, label in enumerate(labels.tolist()):
        logits[row, closure[label][1]] = 5.0
        logits[row, label] = 1.0
    found = [
        evaluate_predictions(
            Predictions(
                rows=np.arange(3), labels=labels, logits=scores, probabilities=scores.sigmoid()
            ),
            SPACE,
            PublishedLabels(),
        )
        for scores in (logits, logits * torch.tensor([-1.0, 1, 1, 1, 1]))
    ]
    assert [run["top1"] for run in found] == [100.0, 100.0]
    assert found[0]["mpvap"] == 100.0
    # Of the three classes of birds two are perfect; the inner one has the cat before both birds.
    assert found[1]["mpvap"] == pytest.approx(100 * ((2 + 2 / 3) / 3 + 1) / 2, abs=0.01)
