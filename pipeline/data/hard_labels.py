"""The hard labels of a manifest without its keys, and the keys of a few rows.

In: what a look into a label store needs of the manifest, at 6 bytes a row. Left out: the check of
the chain, which covers keys and contents and so needs all of them (manifest_files.py).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.data.manifest_files import read_index, read_part


@dataclass(frozen=True, kw_only=True, eq=False)
class HardLabelColumns:
    """Which class each row of a manifest is.

    Attributes:
        labels: (N,) int32 global class id, -1 where unlabelled.
        splits: (N,) uint8.
        retired: (N,) bool.
        prefixes: (chain digest, rows) after each append.
    """

    labels: npt.NDArray[np.int32]
    splits: npt.NDArray[np.uint8]
    retired: npt.NDArray[np.bool_]
    prefixes: tuple[tuple[str, int], ...]


def load_hard_labels(workspace: Path) -> HardLabelColumns:
    """Read the hard labels of a workspace's manifest.

    Raises:
        ManifestError: If there is no manifest, or it cannot be read.
    """
    index = read_index(workspace)
    ends = [append["rows"] for append in index["appends"]]
    sizes = np.diff([0, *ends]).tolist()
    parts = [
        read_part(workspace, position, size, ["label", "split"])
        for position, size in enumerate(sizes)
    ]
    labels = [part.column("label").to_numpy().astype(np.int32) for part in parts]
    splits = [part.column("split").to_numpy().astype(np.uint8) for part in parts]
    prefixes = tuple((append["chain"], append["rows"]) for append in index["appends"])
    retired = np.zeros(ends[-1], np.bool_)
    retired[index["retired"]] = True
    return HardLabelColumns(
        labels=np.concatenate(labels),
        splits=np.concatenate(splits),
        retired=retired,
        prefixes=prefixes,
    )


def load_keys(workspace: Path, rows: Collection[int]) -> dict[int, str]:
    """Return row -> key of some rows, reading one part of the manifest at a time.

    Raises:
        ManifestError: If there is no manifest, or it cannot be read.
    """
    found: dict[int, str] = {}
    begin = 0
    for position, append in enumerate(read_index(workspace)["appends"]):
        end = append["rows"]
        inside = [row for row in rows if begin <= row < end]
        if inside:
            keys = read_part(workspace, position, end - begin, ["key"]).column("key")
            found |= {row: str(keys[row - begin].as_py()) for row in inside}
        begin = end
    return found
