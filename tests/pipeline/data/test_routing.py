"""Which rows a teacher labels, and which rows may be mixed."""

from __future__ import annotations

import numpy as np

from pipeline.data.routing import mix_pools, mixing_problems, route, routed_rows
from storage_schemas.label_space import LabelMap, LabelSpace
from storage_schemas.manifest import TEST, TRAIN, Manifest

SPACE = LabelSpace(classes=("a/x", "a/y", "b/x"))


def grown(manifest, labels, splits):
    """The manifest with one more append."""
    count = len(labels)
    return manifest.appended(
        keys=[f"{len(manifest)}-{i}" for i in range(count)],
        labels=np.array(labels, np.int32),
        splits=np.array(splits, np.uint8),
        digests=np.random.default_rng(len(manifest)).integers(0, 255, (count, 16), np.uint8),
    )


def own(*names):
    """A route to the rows of some classes."""
    return route(LabelMap.from_names(SPACE, list(names), owner="t"), 3, "own")


def test_own_routing_takes_the_support_and_no_unlabelled_row():
    """A specialist labels rows of its classes; unlabelled rows only under routing all."""
    manifest = grown(Manifest.empty(), [0, 1, 2, -1], [TRAIN] * 4)
    assert routed_rows(manifest, TRAIN, own("a/x", "a/y")).tolist() == [0, 1]
    label_map = LabelMap.from_names(SPACE, ["a/x"], owner="t")
    assert routed_rows(manifest, TRAIN, route(label_map, 3, "all")).tolist() == [0, 1, 2, 3]


def test_growth_and_retirement_never_change_a_partner():
    """Partners of old rows are the same after rows were added and others retired."""
    manifest = grown(Manifest.empty(), [0, 0, 1, 1, 2, 2], [TRAIN] * 5 + [TEST])
    routes = np.stack([own("a/x", "a/y"), own("b/x")], axis=1)
    rows = np.arange(5)
    words = np.arange(5, dtype=np.uint32) * 811_000_000
    before = mix_pools(manifest, TRAIN, routes).partners(rows, words)
    later = grown(manifest, [0, 1, 2], [TRAIN] * 3).with_retired([1])
    after = mix_pools(later, TRAIN, routes).partners(rows, words)
    assert np.array_equal(before, after)
    assert set(before[:4]) <= {0, 1, 2, 3}
    assert before[4] == 4


def test_teachers_that_overlap_in_part_cannot_be_mixed():
    """Equal and disjoint supports pass; partial overlap is named."""
    assert mixing_problems(("p", "q"), np.stack([own("a/x"), own("b/x")], axis=1)) == []
    assert mixing_problems(("p", "q"), np.stack([own("a/x"), own("a/x")], axis=1)) == []
    (problem,) = mixing_problems(("p", "q"), np.stack([own("a/x", "a/y"), own("a/x")], axis=1))
    assert "'p' and 'q'" in problem
