"""Which rows of a shard are written, and whether their values may stand there.

In: the rules of storage_schemas/README.md, section 3, for stored ids and gaps of every selection.
Those of block features are with their code (storage_schemas.block_features). Left out: checksums
(commit.py) and the structure of files (shard_index.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from storage_schemas.block_features import BlockFeatureSchema, feature_problems
from storage_schemas.soft_labels import SoftLabelSchema
from storage_schemas.stored_array import StoreSchema

Array = npt.NDArray[Any]


def row_problems(
    schema: StoreSchema, values: Sequence[Array]
) -> tuple[npt.NDArray[np.bool_], list[str]]:
    """Return which rows of a shard are written, (rows,) bool, and what is wrong with the values."""
    if isinstance(schema, BlockFeatureSchema):
        return feature_problems(schema, values)
    assert isinstance(schema, SoftLabelSchema)
    ids, gaps = values
    return label_problems(schema, ids, gaps)


def label_problems(
    schema: SoftLabelSchema, ids: Array, gaps: Array
) -> tuple[npt.NDArray[np.bool_], list[str]]:
    """Return which rows are labelled, (rows,) bool, and what is wrong with the values."""
    absent = ids == schema.ids_fill
    labelled = ~absent[:, 0]
    in_part = absent != absent[:, :1] if schema.selection == "top_k" else _holes(absent)
    problems = []
    if in_part.any() or ((gaps == schema.gaps_fill) != _absent_columns(schema, absent)).any():
        problems.append("a row is labelled in part")
    if ((ids >= schema.num_classes) & ~absent).any():
        problems.append(f"an id is not below {schema.num_classes}")
    ranked = np.sort(ids[labelled], axis=1)
    if ((ranked[:, 1:] == ranked[:, :-1]) & (ranked[:, 1:] != schema.ids_fill)).any():
        problems.append("an id appears twice in a row")
    if schema.selection == "sampled":
        counts = np.where(absent, 0, gaps)[labelled].astype(np.int64)
        falling = (counts[:, 1:] <= counts[:, :-1]).all()
        positive = ((counts > 0) | absent[labelled]).all()
        if not (falling and positive and (counts.sum(axis=1) == schema.k).all()):
            problems.append(f"the counts of a row are not those of {schema.k} draws")
    return labelled, problems


def _holes(absent: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return (rows, K - 1) where a rank is there though the one before it is not."""
    return absent[:, :-1] & ~absent[:, 1:]


def _absent_columns(
    schema: SoftLabelSchema, absent: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_]:
    """Return (rows, columns) which values of `gaps` are fill, given which ranks are absent."""
    if schema.selection == "sampled":
        return absent
    # Column j - 1 is the gap to rank j; the columns after the gaps are there with rank 0.
    others = schema.columns - (schema.k - 1)
    return np.concatenate([absent[:, 1:], np.repeat(absent[:, :1], others, axis=1)], axis=1)
