"""Routing: which rows a teacher labels, what is kept of its answers, and who is mixed with whom.

A route is a (C + 1,) bool table over the label space, True where rows of that class are labelled;
the last entry stands for unlabelled rows (label -1). Used by the teachers' side and the student's
side alike, so that both speak of the same rows. Imports no torch.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pipeline.config import Project
from storage_schemas.label_space import LabelMap
from storage_schemas.manifest import TEST, Manifest
from storage_schemas.mixing import MixPools
from storage_schemas.view_recipe import ViewRecipe

Route = npt.NDArray[np.bool_]


def route(label_map: LabelMap, num_classes: int, routing: Literal["own", "all"]) -> Route:
    """Return the (C + 1,) route of a teacher."""
    table = np.full(num_classes + 1, routing == "all")
    table[label_map.global_ids] = True
    return table


def routed_rows(manifest: Manifest, split: int, table: Route) -> npt.NDArray[np.int64]:
    """Return the ascending rows of a split that are in use and on the route."""
    rows = manifest.rows(split)
    return rows[table[manifest.labels[rows]]]


def retired_rows(manifest: Manifest, split: int, table: Route) -> npt.NDArray[np.int64]:
    """Return the ascending rows of a split that are on the route and no longer in use."""
    on_route: npt.NDArray[np.bool_] = table[manifest.labels]
    gone = manifest.retired & (manifest.splits == split) & on_route
    return np.flatnonzero(gone).astype(np.int64)


def split_recipe(project: Project, split: int) -> ViewRecipe:
    """Return the recipe of a split: the project's for training, the evaluation view for test."""
    return ViewRecipe.evaluation_recipe() if split == TEST else project.views


def split_labels(project: Project, split: int, num_classes: int) -> dict[str, Any]:
    """Return what is kept of each answer of a teacher in a split, as fields of a store's schema.

    Test rows are always labelled with top_k, so that a specialist's accuracy is its own and not
    that of its draws. Draws may be more than there are classes; kept classes may not.
    """
    labels = project.labels
    fields = labels.model_dump(include={"activation", "temperatures", "precision"})
    if split == TEST or labels.selection == "top_k":
        return {**fields, "selection": "top_k", "top_p": None, "k": min(labels.k, num_classes)}
    k = labels.k if labels.selection == "sampled" else min(labels.k, num_classes)
    return {**fields, "selection": labels.selection, "top_p": labels.top_p, "k": k}


def mix_pools(manifest: Manifest, split: int, routes: npt.NDArray[np.bool_]) -> MixPools:
    """Return the pools of mixing partners: one per teacher and manifest append.

    Retired rows stay in their pool and later appends never join it, so the partner of a row
    never changes.

    Args:
        manifest: All rows.
        split: Partners are of the same split.
        routes: (C + 1, T) one column per teacher; teachers that share rows must be equal.
    """
    first_teacher = np.where(routes.any(axis=1), routes.argmax(axis=1), -1)
    teacher = first_teacher[manifest.labels]
    pool = np.where(
        (teacher >= 0) & (manifest.splits == split),
        teacher * (int(manifest.appends.max(initial=0)) + 1) + manifest.appends,
        -1,
    )
    return MixPools(pool_of=pool.astype(np.int64))


def mixing_problems(names: tuple[str, ...], routes: npt.NDArray[np.bool_]) -> list[str]:
    """Return why a row's mixing partner would depend on which of its teachers is asked."""
    return [
        f"teachers {names[a]!r} and {names[b]!r} share some rows but not all: mixing needs "
        "teachers whose rows are equal or disjoint"
        for a in range(len(names))
        for b in range(a + 1, len(names))
        if (routes[:, a] & routes[:, b]).any() and not np.array_equal(routes[:, a], routes[:, b])
    ]
