"""What is-a parents mean for the labels of an image."""

from __future__ import annotations

from storage_schemas.hierarchy import label_closure, leaf_classes
from storage_schemas.label_space import LabelSpace

CLASSES = ("bird/bird", "bird/robin", "bird/songbird", "cat/cat", "bird/wader")
PARENTS = {
    "bird/robin": ("bird/songbird", "bird/bird"),
    "bird/songbird": ("bird/bird",),
    "bird/wader": ("bird/bird",),
}
BIRDS = LabelSpace(classes=CLASSES, parents=PARENTS)


def test_closure_is_the_class_and_all_its_ancestors() -> None:
    """The class comes first, each ancestor once however many ways lead to it."""
    assert label_closure(BIRDS).tolist() == [
        [0, -1, -1],
        [1, 0, 2],
        [2, 0, -1],
        [3, -1, -1],
        [4, 0, -1],
    ]


def test_leaves_are_nobodys_parents() -> None:
    """A class without parents is a leaf unless it is one."""
    assert leaf_classes(BIRDS).tolist() == [False, True, False, True, True]


def test_a_flat_space_is_its_own_closure() -> None:
    """Without parents every class is a leaf and belongs to itself alone."""
    flat = LabelSpace(classes=CLASSES)
    assert label_closure(flat).tolist() == [[0], [1], [2], [3], [4]]
    assert leaf_classes(flat).all()
