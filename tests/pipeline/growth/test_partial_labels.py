"""`student.allow_partial`: training on the labels that exist, and on nothing else."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from pipeline.data import update_manifest
from pipeline.data.epoch_order import BatchOrder
from pipeline.data.loader import BatchDataset
from pipeline.store import open_soft_labels
from pipeline.training import students
from pipeline.training.evaluation import evaluate_runs
from pipeline.training.runs import stale_reason, student_runs, training_rows
from storage_schemas.errors import MissingLabelError
from storage_schemas.manifest import TEST, TRAIN

PARTIAL = "student.allow_partial=true"


def existing(growing: Any, update: Any) -> set[tuple[int, int]]:
    """(row, view) pairs in use that the shards hold, row by row from the arrays themselves."""
    found = set()
    in_use = set(update.manifest.rows(TRAIN).tolist())
    for path in (growing.folder / "work/labels").glob("*/*.zarr"):
        store = open_soft_labels(path)
        if store.schema.split != "train":
            continue
        for view, shard in np.argwhere(store.commits[:, :, 0] > 0).tolist():
            ids, _ = store.read_shard(view, shard)
            rows = store.shard_span(shard).start + np.flatnonzero(ids[:, 0] < store.schema.ids_fill)
            found.update((row, view) for row in rows.tolist() if row in in_use)
    return found


def drawn(published: Any, update: Any, epochs: int, **options: Any) -> Counter[tuple[int, int]]:
    """How often each pair is drawn over some epochs."""
    available = published.available
    order = BatchOrder(
        rows=training_rows(update.manifest, published),
        views=2,
        seed=0,
        available=None if available is None else available.views,
        **({"batch_size": 1} | options),
    )
    seen: Counter[tuple[int, int]] = Counter()
    for epoch in range(epochs):
        for rows, views in order.batches(epoch):
            seen.update(zip(rows.tolist(), views.tolist(), strict=True))
    return seen


def runs_of(growing: Any, *overrides: str) -> Any:
    """Project, update, published labels and runs."""
    project = growing.project(*overrides)
    update = update_manifest(project)
    published = growing.published(TRAIN, *overrides)
    return (
        project,
        update,
        published,
        student_runs(project, update.label_space, update.manifest, published),
    )


def half(growing: Any) -> Any:
    """Label the first shard of each store, and one view of the second of fruit."""
    growing.label(shards=1)
    update = growing.label(shards=1, teachers=["fruit"])
    growing.published(TRAIN, PARTIAL).stores[0].discard_shard(1, 1)
    return update


def test_it_must_be_asked_for(growing: Any) -> None:
    """Without the option the student is refused, and the message names it; so with no store."""
    growing.label(shards=1)
    with pytest.raises(MissingLabelError, match=r"fruit \(4 shards\).*student\.allow_partial"):
        growing.published(TRAIN)
    (growing.folder / "work/labels/fruit/published.json").unlink()
    (growing.folder / "work/labels/tool/published.json").unlink()
    with pytest.raises(MissingLabelError, match=r"fruit \(nothing published\), tool"):
        growing.published(TRAIN, PARTIAL)


@pytest.mark.parametrize(
    "options", [{}, {"shard_rows": 8}, {"views_per_image": 2, "batch_size": 2}]
)
def test_the_pairs_drawn_are_the_existing_ones_and_all_of_them(
    growing: Any, options: dict[str, int]
) -> None:
    """Over all epochs each existing pair of a row comes up equally often, and no other pair."""
    update = half(growing)
    published = growing.published(TRAIN, PARTIAL)
    pairs = existing(growing, update)
    whole = 2 * len(update.manifest.rows(TRAIN))
    assert 0 < len(pairs) < whole
    views = Counter(row for row, _ in pairs)
    assert set(views.values()) == {1, 2}
    seen = drawn(published, update, epochs=40, **options)
    assert seen.keys() == pairs
    draws = 40 * options.get("views_per_image", 1)
    assert all(seen[row, view] == draws // views[row] for row, view in pairs)
    names = dict(zip(published.names, published.counts, strict=True))
    assert sum(labels for labels, _ in names.values()) == len(pairs)
    assert sum(wanted for _, wanted in names.values()) == whole


def test_student_and_control_see_the_same_pairs(growing: Any, monkeypatch: Any) -> None:
    """Both are trained on exactly the pairs that exist, and the record says how many."""
    update = half(growing)
    seen: list[Counter[tuple[int, int]]] = []
    original = BatchDataset.__getitem__

    def spy(self: Any, index: Any) -> Any:
        seen[-1].update(zip(index[0].tolist(), index[1].tolist(), strict=True))
        return original(self, index)

    monkeypatch.setattr(BatchDataset, "__getitem__", spy)
    overrides = (PARTIAL, "student.epochs=3", "student.batch_size=1")
    project, update, published, runs = runs_of(growing, *overrides)
    for run in runs:
        seen.append(Counter())
        record = students.train_student(
            project, run, update.label_space, update.manifest, published
        )
        assert stale_reason(run) is None
        assert record["labels"] == {
            name: list(pair) for name, pair in zip(published.names, published.counts, strict=True)
        }
        assert record["labels"]["fruit"][0] < record["labels"]["fruit"][1]
    assert seen[0] == seen[1]
    assert seen[0].keys() == existing(growing, update)

    growing.label()
    project, update, published, runs = runs_of(growing, *overrides)
    assert published.available is None
    student, control = (stale_reason(run) or "" for run in runs)
    assert "labels of fruit" in student
    assert "training rows" in control


def test_specialists_are_evaluated_where_their_test_labels_exist(growing: Any) -> None:
    """Test labels that are missing are left out of a specialist's figures; the student's stand."""
    growing.label()
    project, update, published, runs = runs_of(growing, PARTIAL, "student.control=false")
    students.train_student(project, runs[0], update.label_space, update.manifest, published)
    fruit, tool = growing.published(TEST).stores
    lost = int(np.flatnonzero(fruit.commits[0, :, 0])[0])
    fruit.discard_shard(0, lost)
    for shard in np.flatnonzero(tool.commits[0, :, 0]).tolist():
        tool.discard_shard(0, shard)
    with pytest.raises(MissingLabelError, match="test labels are missing"):
        growing.published(TEST)
    tests = growing.published(TEST, PARTIAL)
    found = evaluate_runs(project, runs, update.label_space, update.manifest, tests)
    rows = update.manifest.rows(TEST)
    own = [row for row in rows if "fruit/" in update.manifest.keys[row] and row // 8 != lost]
    assert found["specialists"]["fruit"]["images"] == len(own) > 0
    assert found["specialists"]["fruit"]["top1"] is not None
    assert found["specialists"]["tool"]["images"] == 0
    assert found["specialists"]["tool"]["top1"] is None
    assert found["runs"][0]["images"] == len(rows)
    assert found["runs"][0]["agreement"]["tool"] is None
    assert found["runs"][0]["labels"] == published.coverage()


def test_a_whole_store_trains_as_without_the_option(growing: Any) -> None:
    """With every label there, runs, rows and batches are the same to the bit."""
    update = growing.label()
    plain, asked = growing.published(TRAIN), growing.published(TRAIN, PARTIAL)
    assert asked.available is None
    assert not asked.is_partial
    first = [run.fingerprint for run in runs_of(growing)[-1]]
    assert [run.fingerprint for run in runs_of(growing, PARTIAL)[-1]] == first
    rows = training_rows(update.manifest, plain)
    one = BatchOrder(rows=rows, batch_size=4, views=2, seed=3, views_per_image=2)
    other = BatchOrder(
        rows=rows,
        batch_size=4,
        views=2,
        seed=3,
        views_per_image=2,
        available=np.ones((len(rows), 2), np.bool_),
    )
    for epoch in range(3):
        for batch, same in zip(one.batches(epoch), other.batches(epoch), strict=True):
            assert np.array_equal(batch, same)


def test_a_teacher_that_was_never_labelled_takes_no_part(growing: Any) -> None:
    """Its rows are left out, it is named, and the labels of the others are used."""
    growing.label(teachers=["fruit"])
    project, update, published, runs = runs_of(growing, PARTIAL)
    assert published.unpublished == ("tool",)
    assert published.is_partial
    assert published.coverage()["tool"] == [0, 0]
    keys = update.manifest.keys[training_rows(update.manifest, published)]
    assert len(keys)
    assert all(key.startswith("fruit/") for key in keys)
    record = students.train_student(
        project, runs[0], update.label_space, update.manifest, published
    )
    assert record["rows"] == len(keys)


def test_a_row_of_two_teachers_needs_both(growing: Any) -> None:
    """With routing all, a pair counts where every teacher of the row has labelled it."""
    routing = "teachers.tool.routing=all"
    growing.label(routing)
    fruit, tool = growing.published(TRAIN, routing).stores
    fruit.discard_shard(0, 0)
    tool.discard_shard(1, 1)
    available = growing.published(TRAIN, routing, PARTIAL).available
    found = dict(zip(available.rows.tolist(), available.views.tolist(), strict=True))
    manifest = update_manifest(growing.project()).manifest
    for row in manifest.rows(TRAIN).tolist():
        expected = [True, True]
        if row < 8:
            expected[0] = False
        elif row < 16:
            expected[1] = False
        assert found[row] == expected


def test_new_rows_of_a_shard_are_left_out_until_they_are_labelled(growing: Any) -> None:
    """Rows added and rows changed do not stop training; only what is labelled is drawn."""
    growing.label()
    for number in range(40, 46):
        growing.draw(f"fruit/pear/{number}.png", 600 + number)
    growing.draw("fruit/apple/1.png", 700)
    update = update_manifest(growing.project())
    published = growing.published(TRAIN, PARTIAL)
    rows = training_rows(update.manifest, published)
    assert rows.max() < 40
    assert set(drawn(published, update, epochs=4)) == existing(growing, update)
    assert len(rows) < len(update.manifest.rows(TRAIN))


def test_views_mixed_with_a_changed_image_are_not_used(growing: Any) -> None:
    """The teacher saw the old image in the mixture; no student is shown another in its place."""
    mix = "views.mix={kind: mixup, alpha: 0.8, probability: 1.0}"
    growing.label(mix)
    assert growing.published(TRAIN, mix).available is None
    manifest = update_manifest(growing.project(mix)).manifest
    key = next(k for k in manifest.keys[manifest.rows(TRAIN)] if k.startswith("fruit/plum"))
    growing.remove(key)
    update = growing.label(mix)
    gone = int(np.flatnonzero(update.manifest.retired)[0])
    project, update, published, runs = runs_of(growing, mix, "student.epochs=4")
    available = published.available
    assert available is not None
    reader = students._reader(project, runs[0].config, update.manifest, published)
    rows = update.manifest.rows(TRAIN)
    for view in range(2):
        partners, _ = reader.mix_weights(rows, np.full_like(rows, view))
        usable = available.rows[available.views[:, view]]
        assert set(rows[partners != gone].tolist()) == set(usable.tolist())
    assert available.views.sum() < 2 * len(rows)
    students.train_student(project, runs[0], update.label_space, update.manifest, published)
