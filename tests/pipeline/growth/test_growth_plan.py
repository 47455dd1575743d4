"""What `plan` finds to do when classes, specialists and settings grow or change, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.data import load_manifest, update_manifest
from pipeline.plan import Plan
from pipeline.store import open_soft_labels
from pipeline.store.published import published_path
from pipeline.training.runs import stale_reason, student_runs
from pipeline.training.students import train_student
from pipeline.workspace import Workspace
from storage_schemas.manifest import TRAIN


def reasons(plan: Plan, stage: str) -> dict[str, str]:
    """Target -> reason of one stage's work."""
    return {item.target: item.reason for item in plan.work if item.stage == stage}


def train_students(growing: Any) -> None:
    """Train the student and its control, as the flow does."""
    project = growing.project()
    update = update_manifest(project)
    published = growing.published(TRAIN)
    for run in student_runs(project, update.label_space, update.manifest, published):
        if stale_reason(run) is not None:
            train_student(project, run, update.label_space, update.manifest, published)


def store_of(growing: Any, teacher: str) -> Path:
    """The published training store of a teacher."""
    path = published_path(Workspace(growing.folder / "work"), teacher, TRAIN)
    assert path is not None
    return path


def relabelled(before: Any, after: Any) -> set[str]:
    """Teachers of which any shard was written."""
    return {at[0] for at in after if before.get(at) != after[at]}


def figs(growing: Any, count: int = 6) -> None:
    """A new class in an old vertical."""
    for number in range(count):
        growing.draw(f"fruit/fig/{number}.png", 400 + number)


def test_a_new_class_beside_a_fixed_class_list(growing: Any) -> None:
    """Nothing is labelled again; the student is stale by one named class; its rows are left out."""
    growing.label()
    train_students(growing)
    assert reasons(growing.plan(), "train") == {}
    figs(growing)
    stamps = growing.shards()
    plan = growing.plan()
    assert reasons(plan, "specialists") == reasons(plan, "label") == {}
    assert reasons(plan, "train") == dict.fromkeys(
        ("student", "student-control"),
        "changed since the nearest finished run: 1 class more (fruit/fig)",
    )
    manifest = load_manifest(growing.folder / "work")
    keys = manifest.keys[manifest.rows(TRAIN)]
    assert plan.no_teacher == {"fruit/fig": sum("fig" in key for key in keys)}
    growing.label()
    assert growing.shards() == stamps


def test_a_new_class_of_a_specialist_that_is_trained_here(growing: Any) -> None:
    """That specialist is trained and run again, the reason names the class; the other is not."""
    growing.settings(
        teachers=[
            growing.teacher("fruit", {"vertical": "fruit"}, weights=None),
            growing.teacher("tool", {"vertical": "tool"}, weights=None),
        ]
    )
    assert reasons(growing.plan(), "specialists") == dict.fromkeys(
        ("fruit", "tool"), "weights are null, none trained yet"
    )
    assert growing.train_specialists() == ["fruit", "tool"]
    growing.label()
    figs(growing)
    plan = growing.plan()
    why = "1 class more (fruit/fig)"
    assert reasons(plan, "specialists") == {"fruit": f"changed since it was trained: {why}"}
    assert reasons(plan, "label") == dict.fromkeys(
        ("fruit/train", "fruit/test"), "after the specialist is trained"
    )
    assert plan.no_teacher == {}
    before = growing.shards()
    assert growing.train_specialists() == ["fruit"]
    label = reasons(growing.plan(), "label")
    assert set(label) == {"fruit/train", "fruit/test"}
    expected = f"changed since the published store: {why}, other weights"
    assert set(label.values()) == {expected}
    growing.label()
    assert relabelled(before, growing.shards()) == {"fruit"}
    assert open_soft_labels(store_of(growing, "fruit")).schema.num_classes == 4


def test_a_new_specialist(growing: Any) -> None:
    """Only the new one is labelled."""
    growing.settings(teachers=[growing.teacher("fruit", ["plum", "apple", "pear"])])
    growing.label()
    assert growing.plan().no_teacher.keys() == {"tool/axe", "tool/saw"}
    growing.settings(
        teachers=[
            growing.teacher("fruit", ["plum", "apple", "pear"]),
            growing.teacher("tool", ["axe", "saw"]),
        ]
    )
    plan = growing.plan()
    assert plan.no_teacher == {}
    assert reasons(plan, "label") == dict.fromkeys(("tool/train", "tool/test"), "not labelled yet")
    before = growing.shards()
    growing.label()
    assert relabelled(before, growing.shards()) == {"tool"}


def test_a_specialist_that_covers_one_class_more(growing: Any) -> None:
    """Another class list with other weights: only that teacher, and the reason names both."""
    names = growing.folder / "fruit.txt"
    names.write_text("plum\napple\npear\n")
    teachers = [growing.teacher("fruit", "fruit.txt"), growing.teacher("tool", ["axe", "saw"])]
    growing.settings(teachers=teachers)
    growing.label()
    figs(growing)
    assert reasons(growing.plan(), "label") == {}
    names.write_text("plum\napple\npear\nfig\n")
    growing.checkpoint("fruit", 4, seed=5)
    plan = growing.plan()
    assert reasons(plan, "label") == dict.fromkeys(
        ("fruit/train", "fruit/test"),
        "changed since the published store: 1 class more (fruit/fig), other weights",
    )
    before = growing.shards()
    growing.label()
    assert relabelled(before, growing.shards()) == {"fruit"}
    assert reasons(growing.plan(), "label") == {}


@pytest.mark.parametrize(
    ("settings", "changes", "stores"),
    [
        (["labels.k=1"], "k 2 -> 1", 4),
        (["labels.temperatures=[1.0, 2.0]"], "temperatures [1.0] -> [1.0, 2.0]", 4),
        (["labels.precision=compact"], "precision 'exact' -> 'compact'", 4),
        (["views.flip=0.1", "views.count=3"], "views.count 2 -> 3, views.flip 0.5 -> 0.1", 2),
        (["teachers.tool.classes=[saw, axe]"], "the classes are in another order", 2),
        (["teachers.tool.input.size=24"], "input.size 32 -> 24", 2),
        (["teachers.tool.routing=all"], "routing 'own' -> 'all'", 2),
        (["teachers.tool.weights=other.safetensors"], "other weights", 2),
    ],
)
def test_a_changed_setting_is_named_with_both_values(
    growing: Any, settings: list[str], changes: str, stores: int
) -> None:
    """The reason says what it was and what it is to be, for the stores that it concerns."""
    growing.label()
    growing.checkpoint("other", 2, seed=8)
    label = reasons(growing.plan(*settings), "label")
    assert set(label.values()) == {f"changed since the published store: {changes}"}
    assert len(label) == stores


def test_new_rows_interruption_and_damage_are_told_apart(growing: Any) -> None:
    """A reason counts new rows, shards not reached, shards behind, and shards out of use."""
    growing.label(shards=1)
    label = reasons(growing.plan(), "label")
    assert label["fruit/train"] == "interrupted: 4 shards missing"
    growing.label()
    assert reasons(growing.plan(), "label") == {}
    open_soft_labels(store_of(growing, "fruit")).discard_shard(1, 0)
    label = reasons(growing.plan(), "label")
    assert label == {"fruit/train": "1 shard damaged and out of use, or cut off while written"}
    for number in range(30, 36):
        growing.draw(f"fruit/pear/{number}.png", 500 + number)
    label = reasons(growing.plan(), "label")
    rows, _, rest = label["fruit/train"].partition("; ")
    assert rows.endswith(" new rows")
    assert rest == "1 shard damaged and out of use, or cut off while written"
    growing.label(shards=0)  # grown, and killed before the first shard
    label = reasons(growing.plan(), "label")
    assert label["fruit/train"] == (
        "1 shard damaged and out of use, or cut off while written; interrupted: 2 shards missing"
    )


def test_the_plan_warns_where_balanced_labels_lack_classes(growing: Any) -> None:
    """Balanced KD on truncated labels is told what to store; other objectives are not."""
    balanced = "student.objective={name: balanced, temperature: 1.0}"
    (warning,) = growing.plan(balanced, "labels.k=1").warnings
    assert "labels.k 1 drops classes" in warning
    assert growing.plan(balanced, "labels.k=64").warnings == ()
    assert growing.plan("labels.k=1").warnings == ()
