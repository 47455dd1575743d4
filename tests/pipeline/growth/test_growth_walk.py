"""Images are added, changed, removed, renamed and brought back; after each, labels are made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from pipeline.data import ManifestUpdate, update_manifest
from pipeline.data.routing import routed_rows
from pipeline.store.published import SPLIT_NAMES
from pipeline.training.runs import training_rows
from storage_schemas.errors import MissingLabelError
from storage_schemas.manifest import TEST, TRAIN

SHARD_ROWS = 8


@dataclass(frozen=True)
class Step:
    """What is done to the images, and what the manifest must make of it.

    Attributes:
        do: Changes the images.
        new: Keys of the rows that are appended, in order.
        retired: Keys whose row goes out of use.
        revived: Keys whose old row is in use again.
    """

    do: Callable[[Any], object]
    new: tuple[str, ...] = ()
    retired: tuple[str, ...] = ()
    revived: tuple[str, ...] = ()


def _draw(*pairs: tuple[str, int]) -> Callable[[Any], object]:
    return lambda growing: [growing.draw(path, seed) for path, seed in pairs]


PEARS = tuple(f"fruit/pear/{number}.png" for number in range(10, 16))
STEPS = {
    "add": Step(_draw(*((path, 100 + i) for i, path in enumerate(PEARS))), new=PEARS),
    "change": Step(
        _draw(("fruit/apple/3.png", 200), ("tool/axe/0.png", 201), ("tool/axe/1.png", 202)),
        new=("fruit/apple/3.png", "tool/axe/0.png", "tool/axe/1.png"),
        retired=("fruit/apple/3.png", "tool/axe/0.png", "tool/axe/1.png"),
    ),
    "remove": Step(
        lambda growing: [growing.remove(path) for path in (PEARS[0], "tool/saw/2.png")],
        retired=(PEARS[0], "tool/saw/2.png"),
    ),
    # A rename is a removal and an addition: the name is the row's key, and decides its split.
    "rename": Step(
        lambda growing: growing.rename("fruit/plum/1.png", "fruit/plum/moved.png"),
        new=("fruit/plum/moved.png",),
        retired=("fruit/plum/1.png",),
    ),
    "back": Step(
        lambda growing: (
            growing.rename("fruit/plum/moved.png", "fruit/plum/1.png"),
            growing.draw("fruit/apple/3.png", 3),
        ),
        retired=("fruit/plum/moved.png", "fruit/apple/3.png"),
        revived=("fruit/plum/1.png", "fruit/apple/3.png"),
    ),
}


def _rows_of(update: ManifestUpdate, keys: tuple[str, ...], retired: bool) -> set[int]:
    manifest = update.manifest
    return {
        row
        for row in np.flatnonzero(manifest.retired == retired).tolist()
        if manifest.keys[row] in keys
    }


def check_rows(before: ManifestUpdate, after: ManifestUpdate, step: Step, images: set[str]) -> None:
    """New rows at the end, in order; what went is retired and keeps its number; the rest stays."""
    old, new = before.manifest, after.manifest
    assert new.keys[len(old) :].tolist() == list(step.new)
    assert new.keys[: len(old)].tolist() == old.keys.tolist()
    assert np.array_equal(new.digests[: len(old)], old.digests)
    in_use = set(new.rows().tolist())
    assert {new.keys[row] for row in in_use} == images
    assert len(in_use) == len(images)
    gone = set(old.rows().tolist()) - in_use
    assert {old.keys[row] for row in gone} == set(step.retired)
    back = in_use & set(np.flatnonzero(old.retired).tolist())
    assert {new.keys[row] for row in back} == set(step.revived)


def shards_of_new_rows(growing: Any, before: ManifestUpdate, after: ManifestUpdate) -> set[Any]:
    """Every view of each shard into which a row was appended, by teacher and split."""
    found = set()
    for split in (TRAIN, TEST):
        published = growing.published(split)
        for index, name in enumerate(published.names):
            rows = routed_rows(after.manifest, split, published.routes[:, index])
            for shard in np.unique(rows[rows >= len(before.manifest)] // SHARD_ROWS).tolist():
                for view in range(published.stores[index].schema.num_views):
                    found.add((name, SPLIT_NAMES[split], view, shard))
    return found


def labels_by_key(growing: Any, update: ManifestUpdate, split: int) -> dict[Any, Any]:
    """(key, view) -> named classes and log-probabilities, of every row in use."""
    published = growing.published(split)
    found = {}
    for index, store in enumerate(published.stores):
        rows = routed_rows(update.manifest, split, published.routes[:, index])
        for view in range(store.schema.num_views):
            said = store.fetch(rows, np.full_like(rows, view))
            for at, row in enumerate(rows):
                names = [update.label_space.classes[i] for i in said.ids[at]]
                found[update.manifest.keys[row], view] = dict(
                    zip(names, said.log_probs[at].tolist(), strict=True)
                )
    return found


def assert_same_labels(found: dict[Any, Any], expected: dict[Any, Any]) -> None:
    """Equal up to one step of the code: a batch of other rows may round otherwise."""
    assert found.keys() == expected.keys()
    for place, labels in expected.items():
        assert found[place] == pytest.approx(labels, abs=2e-3), place


def test_growth_walk(growing: Any) -> None:
    """Through add, change, remove, rename and back: only new rows are labelled, all are right."""
    before = growing.label()
    train_labels = labels_by_key(growing, before, TRAIN)
    different = {tuple((k, round(v, 2)) for k, v in said.items()) for said in train_labels.values()}
    assert len(different) > 0.8 * len(train_labels)
    for name, step in STEPS.items():
        shards_before = growing.shards()
        step.do(growing)
        after = growing.label()
        check_rows(before, after, step, growing.images())
        shards = growing.shards()
        written = {at for at, stamp in shards.items() if shards_before.get(at) != stamp}
        assert written == shards_of_new_rows(growing, before, after), name
        assert shards_before.keys() <= shards.keys(), name  # what was not written kept its bytes

        # Views depend on the row number: a store of the same rows, made at once, says the same.
        again = growing.fresh(f"{name} same rows", same_rows=True)
        again_update = again.label()
        for split in (TRAIN, TEST):
            expected = labels_by_key(again, again_update, split)
            assert_same_labels(labels_by_key(growing, after, split), expected)
        # The evaluation view does not: a project that never knew another image says the same.
        new = growing.fresh(f"{name} new rows", same_rows=False)
        expected = labels_by_key(new, new.label(), TEST)
        assert_same_labels(labels_by_key(growing, after, TEST), expected)

        rows = training_rows(after.manifest, growing.published(TRAIN))
        assert {after.manifest.keys[row] for row in rows} == {
            after.manifest.keys[row] for row in after.manifest.rows(TRAIN)
        }
        assert not after.manifest.retired[rows].any()
        before = after
    stamps = growing.shards()
    assert growing.label().added == 0
    assert growing.shards() == stamps


def test_labels_of_a_changed_image_are_not_served(growing: Any) -> None:
    """Its new row is refused until it is labelled, and then has another label than the old row."""
    first = growing.label()
    key = next(k for k in first.manifest.keys[first.manifest.rows(TRAIN)] if "apple" in k)
    old = first.manifest.alive_by_key[key]
    growing.draw(key, 999)
    update = update_manifest(growing.project())
    row = update.manifest.alive_by_key[key]
    assert row == len(first.manifest)
    assert update.manifest.retired[old]
    with pytest.raises(MissingLabelError, match="fruit"):
        growing.published(TRAIN)
    growing.label()
    published = growing.published(TRAIN)
    rows = training_rows(update.manifest, published)
    assert row in rows
    assert old not in rows
    store = published.stores[0]
    for view in range(2):
        said = store.fetch(np.array([old, row]), np.array([view, view])).log_probs
        assert abs(said[0] - said[1]).max() > 1e-2


def test_a_row_back_before_it_was_ever_labelled_gets_its_label(growing: Any) -> None:
    """Added, away while its shard is written, back while another goes: nothing hides it."""
    growing.label()
    growing.draw("fruit/pear/20.png", 300)
    growing.draw("fruit/pear/21.png", 301)
    manifest = update_manifest(growing.project()).manifest
    rows = [manifest.alive_by_key[f"fruit/pear/{number}.png"] for number in (20, 21)]
    assert manifest.splits[rows].tolist() == [TRAIN, TRAIN]
    growing.remove("fruit/pear/20.png")
    growing.label()
    growing.draw("fruit/pear/20.png", 300)
    growing.remove("fruit/pear/21.png")
    update = growing.label()
    assert update.manifest.alive_by_key["fruit/pear/20.png"] == rows[0]
    store = growing.published(TRAIN).stores[0]
    assert store.fetch(np.array(rows[:1]), np.array([1])).ids.min() >= 0
