"""Soft labels against the hard labels of the manifest: agreement, confusions, likely errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.data.manifest_files import save
from pipeline.store import SoftLabelStore, create_soft_labels, inspect_store
from storage_schemas.label_space import LabelSpace
from storage_schemas.manifest import Manifest

SPACE = LabelSpace(classes=("cars/0", "cars/1", *(f"birds/{i}" for i in range(12))))
ROWS = 300


@pytest.fixture
def manifest() -> Manifest:
    """200 birds, 60 cars, 40 without a hard label; rows 0 to 9 retired, 290 to 299 for testing."""
    rng = np.random.default_rng(3)
    labels = rng.integers(2, 14, ROWS).astype(np.int32)
    labels[200:260] = rng.integers(0, 2, 60)
    labels[260:] = -1
    splits = np.zeros(ROWS, np.uint8)
    splits[290:] = 1
    grown = Manifest.empty().appended(
        keys=[f"image-{row}.png" for row in range(ROWS)],
        labels=labels,
        splits=splits,
        digests=rng.integers(0, 256, (ROWS, 16)).astype(np.uint8),
    )
    return grown.with_retired(np.arange(10))


@pytest.fixture
def store(tmp_path: Path, manifest: Manifest, cases: Any) -> SoftLabelStore:
    """Every row labelled in both views, in a workspace with that manifest."""
    save(tmp_path, manifest, SPACE, {}, {})
    schema = cases.schema_of(manifest_chain=manifest.digest, manifest_rows=ROWS)
    made = create_soft_labels(tmp_path / "labels" / "birds" / "store.zarr", schema)
    cases.fill_store(made)
    return made


def _names(store: SoftLabelStore, view: int) -> Any:
    """Return the first rank's class name of every row."""
    first = store.read(np.arange(ROWS), view).ids[0, :, 0].numpy()
    order = np.argsort(store.label_map.global_ids)
    return np.array(store.schema.classes)[order][first]


def _hard(manifest: Manifest) -> Any:
    return np.array([SPACE.classes[at] if at >= 0 else "" for at in manifest.labels])


def test_agreement_and_confusions_are_exact(store: SoftLabelStore, manifest: Manifest):
    """Agreement, pairs and coverage equal those counted one by one; retired rows are left out."""
    found = inspect_store(store.path)
    used = ~manifest.retired & (manifest.splits == 0)
    hard = _hard(manifest)
    names = np.stack([_names(store, view) for view in range(2)])
    birds = used & np.char.startswith(hard, "birds/")
    agreed = (names == hard) & birds
    assert found.compared == 2 * birds.sum()
    assert found.agreement == agreed.sum() / found.compared
    assert found.retired_labels == 20
    pairs: dict[tuple[str, str], int] = {}
    for view, row in np.argwhere(birds & ~agreed):
        pair = (str(hard[row]), str(names[view, row]))
        pairs[pair] = pairs.get(pair, 0) + 1
    shown = {(pair.hard, pair.first): pair.labels for pair in found.confused}
    assert shown.items() <= pairs.items()
    assert [pair.labels for pair in found.confused] == sorted(pairs.values(), reverse=True)[:20]
    assert found.confused_missing == 0
    by_name = {vertical.vertical: vertical for vertical in found.verticals}
    assert set(by_name) == {"cars", "birds", "(no hard label)"}
    assert (by_name["birds"].rows, by_name["birds"].labels) == (190, (190, 190))
    assert (by_name["birds"].compared, by_name["birds"].agreed) == (380, int(agreed.sum()))
    assert (by_name["cars"].labels, by_name["cars"].compared) == ((60, 60), 0)
    assert by_name["(no hard label)"].labels == (30, 30)


def test_hardest_disagreements_come_first(store: SoftLabelStore, manifest: Manifest):
    """The listed rows have the largest margin between first rank and hard label, each row once."""
    found = inspect_store(store.path, sampled_labels=None)
    hard = _hard(manifest)
    margins: dict[int, float] = {}
    for view in range(2):
        labels = store.fetch(np.arange(ROWS), np.full(ROWS, view))
        names = _names(store, view)
        for row in range(10, 200):
            if names[row] == hard[row]:
                continue
            own = labels.log_probs[row].astype(float)
            local = store.schema.classes.index(hard[row])
            here = store.schema.global_ids[local] == labels.ids[row]
            share = own[here][0] if here.any() else labels.log_tail[row] - np.log(8)
            margins[row] = max(margins.get(row, 0.0), float(own[0] - share))
    wanted = sorted(margins, key=lambda row: -margins[row])[:20]
    assert [row.row for row in found.disagreements] == wanted
    first = found.disagreements[0]
    assert first.key == f"image-{first.row}.png"
    assert first.hard == hard[first.row]
    assert np.log(first.first_probability / first.hard_probability) == pytest.approx(
        margins[first.row], rel=1e-5
    )


def test_hard_labels_of_other_images_are_not_used(tmp_path: Path, manifest: Manifest, cases: Any):
    """A manifest that the store was not made for gives no agreement, and the summary says why."""
    save(tmp_path, manifest, SPACE, {}, {})
    schema = cases.schema_of(manifest_chain="f" * 64, manifest_rows=ROWS)
    store = create_soft_labels(tmp_path / "labels" / "birds" / "store.zarr", schema)
    cases.fill_store(store)
    found = inspect_store(store.path)
    assert (found.agreement, found.verticals, found.disagreements) == (None, (), ())
    assert "not the one that the store was made for" in str(found.hard_labels_problem)
    assert found.labels == 600


def test_classes_with_parents_are_not_compared_by_first_rank(
    tmp_path: Path, manifest: Manifest, cases: Any
):
    """The most probable class of a hierarchy is its root: no agreement, and why is said."""
    space = LabelSpace(classes=SPACE.classes, parents={"birds/1": ("birds/0",)})
    save(tmp_path, manifest, space, {}, {})
    schema = cases.schema_of(manifest_chain=manifest.digest, manifest_rows=ROWS)
    store = create_soft_labels(tmp_path / "labels" / "birds" / "store.zarr", schema)
    cases.fill_store(store)
    found = inspect_store(store.path)
    assert found.agreement is None
    assert "is-a parents" in str(found.hard_labels_problem)
    assert found.labels == 600


def test_a_store_out_of_its_workspace_is_still_summarised(full_store: SoftLabelStore):
    """Without a manifest near it a store has counts and entropies, and no agreement."""
    found = inspect_store(full_store.path)
    assert (found.labels, found.agreement) == (600, None)
    assert "workspace" in str(found.hard_labels_problem)
