"""The constants that lie in a store of block features: read, whole or not at all.

Left out: what they are compared with (block_feature_store.py) and how they are fitted
(pipeline.teachers.feature_creation).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import zarr

from pipeline.locations import storage_errors
from pipeline.store.layout import array_place
from pipeline.store.shards import DECODING_ERRORS
from storage_schemas.errors import CorruptLabelError, StoreError

Fitted = Mapping[str, npt.NDArray[np.float64]]


def read_constant(path: Path, place: str) -> npt.NDArray[np.float64]:
    """Return one constant of a store as it is; its digest is not checked.

    Raises:
        CorruptLabelError: If it does not decode.
        StoreError: If it cannot be read.
    """
    try:
        found = zarr.open_array(array_place(path / place), mode="r", zarr_format=3)
        return np.asarray(found[...], np.float64)
    except storage_errors() as error:
        raise StoreError(f"{path}: array {place} cannot be read: {error}") from error
    except DECODING_ERRORS as error:
        raise altered_constant(path, place, str(error)) from error


def altered_constant(path: Path, place: str, why: str) -> CorruptLabelError:
    """Return the error of a constant that is not what was fitted."""
    return CorruptLabelError(
        f"{path}: array {place}, fitted before the first shard, is damaged: {why}; all "
        "features rest on it: delete the store and run `concentrate label`"
    )


def stored_constants(path: Path, names: Sequence[str]) -> dict[str, Fitted]:
    """Return the constants that lie in a store whose own metadata may be lost.

    Nothing but the checksum of their chunks says that they are whole.

    Args:
        path: Directory of the store.
        names: Of its arrays.

    Raises:
        CorruptLabelError: If one does not decode.
        StoreError: If one cannot be read.
    """
    folders = sorted(folder.name for folder in path.iterdir() if folder.is_dir())
    return {
        name: {
            constant: read_constant(path, f"{constant}/{name}")
            for constant in folders
            if (path / constant / name / "zarr.json").exists()
        }
        for name in names
    }
