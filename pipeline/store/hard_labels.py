"""The hard labels of a store's rows, in the teacher's own class ids.

In: finding the manifest of the workspace in which a store lies, and what fits the store. Left out:
the figures that compare soft with hard labels (shard_figures.py). A store that was copied out of
its workspace is still a store: why there are no hard labels is then a sentence, not an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.data.hard_labels import load_hard_labels
from pipeline.data.manifest_files import has_manifest, load_label_space
from pipeline.store.soft_label_store import SoftLabelStore
from storage_schemas.errors import ConcentrateError
from storage_schemas.manifest import TEST, TRAIN

SPLITS = {"train": TRAIN, "test": TEST}
NO_VERTICAL = "(no hard label)"


@dataclass(frozen=True, kw_only=True, eq=False)
class HardLabels:
    """What the manifest says of a store's rows.

    Attributes:
        workspace: Where the manifest lies.
        local: (N,) int32 class in the teacher's own ids, -1 where it has none or another.
        vertical: (N,) int16 position in `verticals`; the last one where there is no hard label.
        used: (N,) bool, in the store's split and not retired.
        retired: (N,) bool.
        verticals: Names, and `NO_VERTICAL` at the end.
        rows: (verticals,) rows of the manifest in use, labelled by the teacher or not.
    """

    workspace: Path
    local: npt.NDArray[np.int32]
    vertical: npt.NDArray[np.int16]
    used: npt.NDArray[np.bool_]
    retired: npt.NDArray[np.bool_]
    verticals: tuple[str, ...]
    rows: npt.NDArray[np.int64]


def workspace_of(store: SoftLabelStore) -> Path | None:
    """Return the workspace in which a store lies, if that has a manifest."""
    # <workspace>/labels/<teacher>/<fingerprint>.zarr
    above = store.path.absolute().parents
    if len(above) < 3 or above[1].name != "labels" or not has_manifest(above[2]):
        return None
    return above[2]


def hard_labels_of(store: SoftLabelStore) -> HardLabels | str:
    """Return the hard labels of a store's rows, or why there are none."""
    workspace = workspace_of(store)
    if workspace is None:
        return "the store does not lie in a workspace with a manifest"
    schema = store.schema
    try:
        columns = load_hard_labels(workspace)
        space = load_label_space(workspace)
        label_map = schema.resolve(space)
    except ConcentrateError as error:
        return str(error)
    if space.parents:
        return "classes have is-a parents: a sound teacher's most probable class is an inner one"
    if schema.manifest_rows and (schema.manifest_chain, schema.manifest_rows) not in (
        columns.prefixes
    ):
        return "the workspace's manifest is not the one that the store was made for"
    if len(columns.labels) < schema.num_rows:
        return "the workspace's manifest has fewer rows than the store"
    # One more entry, so that the label -1 finds it from the end.
    local_of = np.full(len(space) + 1, -1, np.int32)
    local_of[label_map.global_ids] = np.arange(schema.num_classes)
    vertical_of = np.append(space.vertical_of, len(space.verticals)).astype(np.int16)
    used = ~columns.retired
    if schema.split in SPLITS:
        used &= columns.splits == SPLITS[str(schema.split)]
    vertical = vertical_of[columns.labels]
    size = len(space.verticals) + 1
    n = schema.num_rows
    return HardLabels(
        workspace=workspace,
        local=local_of[columns.labels[:n]],
        vertical=vertical[:n],
        used=used[:n],
        retired=columns.retired[:n],
        verticals=(*space.verticals, NO_VERTICAL),
        rows=np.bincount(vertical[used], minlength=size),
    )
