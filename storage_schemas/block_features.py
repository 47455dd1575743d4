"""The code of block features: values to what is stored and back, in numpy.

In: `encode`, `decode`, and the rules for stored values. Left out: the schema itself
(block_feature_schema.py), files and checksums. README.md beside this file specifies the code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from storage_schemas.block_feature_schema import (
    LARGEST_CODE,
    LARGEST_NUMBER,
    RANGE,
    BlockFeatureSchema,
    FeatureArray,
    FittedArray,
    fitted_digest,
)

__all__ = [
    "RANGE",
    "BlockFeatureSchema",
    "DecodedFeatures",
    "FeatureArray",
    "FittedArray",
    "decode",
    "encode",
    "feature_problems",
    "fitted_digest",
]

LARGEST_FLOAT16 = 65_504.0


class DecodedFeatures(NamedTuple):
    """Features of B (row, view) pairs.

    Attributes:
        values: (B, channels, height, width) float32, 0 where absent.
        present: (B,) bool.
    """

    values: npt.NDArray[np.float32]
    present: npt.NDArray[np.bool_]


def encode(
    array: FeatureArray,
    values: npt.NDArray[np.floating[Any]],
    limits: npt.NDArray[np.float64] | None = None,
) -> npt.NDArray[Any]:
    """Return values as they are stored.

    Args:
        array: Where they go.
        values: (B, channels, height, width), finite; for uint16 whole numbers of 0 .. 65534.
        limits: (2, channels) smallest value and step of each channel; needed by uint8, in which
            values outside of smallest .. smallest + 254 steps become the nearest of these two.

    Raises:
        ValueError: On another shape, a value that is not finite, one beyond float16, or one that
            uint16 would change.
    """
    if values.shape[1:] != array.shape:
        raise ValueError(f"{array.name} must be (B, {array.shape}), got {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"{array.name} must be finite")
    if array.dtype == "float16":
        if len(values) and np.abs(values).max() > LARGEST_FLOAT16:
            raise ValueError(
                f"{array.name} must be within {LARGEST_FLOAT16:g} for float16, got "
                f"{np.abs(values).max():g}; store it as uint8"
            )
        return values.astype(np.float16)
    if array.dtype == "uint16":
        if ((values < 0) | (values > LARGEST_NUMBER) | (values % 1 != 0)).any():
            raise ValueError(f"{array.name} must be whole numbers of 0 to {LARGEST_NUMBER}")
        return values.astype(np.uint16)
    smallest, step = _limits(array, limits)
    steps = np.rint((values.astype(np.float64) - smallest) / step)
    return np.clip(steps, 0, LARGEST_CODE).astype(np.uint8)


def decode(
    array: FeatureArray,
    codes: npt.NDArray[Any],
    limits: npt.NDArray[np.float64] | None = None,
) -> DecodedFeatures:
    """Return what (B, channels, height, width) stored values stand for.

    Args:
        array: Where they come from.
        codes: As stored; fill where absent.
        limits: As in `encode`.
    """
    present = ~array.stored.absent(codes)
    if array.dtype == "uint8":
        smallest, step = _limits(array, limits)
        values = (smallest + step * codes).astype(np.float32)
    else:
        values = codes.astype(np.float32)
    values[~present] = 0
    return DecodedFeatures(values, present)


def _limits(
    array: FeatureArray, limits: npt.NDArray[np.float64] | None
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    if limits is None or limits.shape != (2, array.channels):
        raise ValueError(f"the range of {array.name} must be (2, {array.channels})")
    return limits[0, :, None, None], limits[1, :, None, None]


def feature_problems(
    schema: BlockFeatureSchema, values: Sequence[npt.NDArray[Any]]
) -> tuple[npt.NDArray[np.bool_], list[str]]:
    """Return which rows are written, (rows,) bool, and what is wrong with stored values.

    Args:
        schema: Of the store.
        values: Of each array, (rows, channels, height, width).
    """
    written = [~array.absent(one) for array, one in zip(schema.stored_arrays, values, strict=True)]
    problems = []
    for array, one, there in zip(schema.stored_arrays, values, written, strict=True):
        if (there != written[0]).any():
            problems.append(f"rows of {array.name} are not those of {schema.arrays[0].name}")
        in_part = array.is_fill(one).reshape(len(one), -1) == there[:, None]
        if in_part.any():
            problems.append(f"a row of {array.name} is written in part")
        if array.dtype.kind == "f" and np.isinf(one).any():
            problems.append(f"{array.name} holds a value that is not finite")
    return written[0], problems
