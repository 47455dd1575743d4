"""What is-a parents mean for labels: an image of a class is an image of all its ancestors.

In: the closure of every class, and which classes are leaves. Left out: where parents come from
(pipeline.data.hierarchy) and the losses that train on the closure (pipeline.objectives).

Images carry the label of a leaf. Inner classes are classes like any other: they have a vertical, a
global id and an output in every network; only no image is labelled with them alone.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from storage_schemas.label_space import LabelSpace


def label_closure(space: LabelSpace) -> npt.NDArray[np.int64]:
    """Return (C, A) the classes that an image of each class belongs to, padded with -1.

    First the class itself, then its ancestors in ascending order. A = 1 + the most ancestors that
    a class has, so 1 where no class has parents.
    """
    lines = [(own, *space.ancestors(own)) for own in range(len(space))]
    closure = np.full((len(lines), max(map(len, lines), default=1)), -1, np.int64)
    for own, line in enumerate(lines):
        closure[own, : len(line)] = line
    return closure


def leaf_classes(space: LabelSpace) -> npt.NDArray[np.bool_]:
    """Return (C,) whether a class is nobody's parent; all True where no class has parents."""
    leaves = np.ones(len(space), np.bool_)
    for parents in space.parents.values():
        leaves[[space.index[name] for name in parents]] = False
    return leaves
