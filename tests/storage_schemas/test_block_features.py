"""The code of block features, and what a schema refuses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from storage_schemas.block_features import (
    BlockFeatureSchema,
    FeatureArray,
    decode,
    encode,
    feature_problems,
)
from storage_schemas.errors import SchemaMismatchError

SHAPE = (3, 2, 2)
POOL = {"block": "layer2.0", "reduce": "pool", "channels": 3, "height": 2, "width": 2}
RANGE = {"range": {"shape": (2, 3), "digest": "0" * 64}}


def schema_of(**fields):
    """A schema of two arrays."""
    values = {
        "teacher": "birds",
        "num_rows": 300,
        "num_views": 2,
        "shard_rows": 128,
        "chunk_rows": 32,
        "arrays": [
            POOL,
            POOL | {"block": "layer3", "dtype": "uint8", "fitted": RANGE},
        ],
        "fingerprint_parts": {"weights": "abc"},
    }
    return BlockFeatureSchema.model_validate(values | fields)


def values_within(largest):
    """(n, *SHAPE) float32 values of at most this size."""
    elements = st.floats(-largest, largest, width=32)
    return st.integers(0, 4).flatmap(
        lambda n: arrays.arrays(np.float32, (n, *SHAPE), elements=elements)
    )


@settings(max_examples=60, deadline=None)
@given(values_within(65_504.0))
def test_float16_keeps_eleven_bits(values):
    """The error is at most 2^-11 of a value, and 2^-25 near zero; every row is there."""
    array = FeatureArray.model_validate(POOL)
    found = decode(array, encode(array, values))
    assert found.present.all()
    assert (np.abs(found.values - values) <= np.maximum(np.abs(values) * 2**-11, 2**-25)).all()


@settings(max_examples=60, deadline=None)
@given(
    values_within(100.0),
    arrays.arrays(np.float64, 3, elements=st.floats(-50, 50)),
    arrays.arrays(np.float64, 3, elements=st.floats(1e-3, 1)),
)
def test_uint8_is_half_a_step_off_within_its_range(values, smallest, step):
    """Within the range the error is at most half a step; outside, the nearest end is stored."""
    array = FeatureArray.model_validate(POOL | {"dtype": "uint8", "fitted": RANGE})
    limits = np.stack([smallest, step])
    found = decode(array, encode(array, values, limits), limits)
    low, size = smallest[:, None, None], step[:, None, None]
    nearest = np.clip(values, low, low + 254 * size)
    rounding = 1e-5 * np.maximum(np.abs(nearest), 1)
    assert found.present.all()
    assert (np.abs(found.values - nearest) <= size / 2 + rounding).all()


def test_uint16_keeps_whole_numbers():
    """Every number that is not fill comes back as it was."""
    array = FeatureArray.model_validate(POOL | {"dtype": "uint16"})
    numbers = np.arange(65_535).repeat(2)[: 10_900 * 12].reshape(-1, *SHAPE)
    found = decode(array, encode(array, numbers))
    assert found.present.all()
    assert (found.values == numbers).all()


@pytest.mark.parametrize("value", [-1, 0.5, 65_535, np.nan])
def test_what_uint16_would_change_is_refused(value):
    """No id becomes another one, and none becomes the fill that means absent."""
    array = FeatureArray.model_validate(POOL | {"dtype": "uint16"})
    with pytest.raises(ValueError, match="must be"):
        encode(array, np.full((1, *SHAPE), value, np.float64))


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_what_float16_cannot_hold_is_refused(value):
    """No value becomes an infinity, and none becomes the fill that means absent."""
    array = FeatureArray.model_validate(POOL)
    with pytest.raises(ValueError, match="must be"):
        encode(array, np.full((1, *SHAPE), value, np.float64))


def test_fill_is_absent_and_zero():
    """Rows that were not written decode to zeros that are marked as absent."""
    schema = schema_of()
    for array, limits in zip(schema.arrays, (None, np.ones((2, 3))), strict=True):
        codes = array.stored.empty(2)
        codes[1] = encode(array, np.ones((1, *SHAPE)), limits)
        found = decode(array, codes, limits)
        assert found.present.tolist() == [False, True]
        assert (found.values[0] == 0).all()


def test_a_row_written_in_part_is_a_problem():
    """One missing value, or a row that one array lacks, is found."""
    schema = schema_of()
    full = [np.ones((2, *SHAPE), array.dtype) for array in schema.stored_arrays]
    assert feature_problems(schema, full)[1] == []
    for position, array in enumerate(schema.stored_arrays):
        torn = [values.copy() for values in full]
        torn[position][1, 2, 1, 1] = array.fill
        assert feature_problems(schema, torn)[1] == [f"a row of {array.name} is written in part"]
        torn[position][1] = array.fill
        assert len(feature_problems(schema, torn)[1]) == 1


def test_attributes_round_trip_and_list_every_problem():
    """The JSON form reads back equal; of a wrong one every field is named."""
    schema = schema_of()
    attributes = schema.to_attributes()
    assert BlockFeatureSchema.from_attributes(attributes, "here") == schema
    wrong = attributes | {"version": 2, "num_views": 0, "extra": 1, "chunk_rows": "x"}
    with pytest.raises(SchemaMismatchError) as caught:
        BlockFeatureSchema.from_attributes(wrong, "here")
    message = str(caught.value)
    assert all(field in message for field in ("version", "num_views", "extra", "chunk_rows"))


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"arrays": [POOL, POOL]}, "layer2_0.pool"),
        ({"arrays": [POOL | {"dtype": "uint8"}]}, "range"),
        ({"arrays": [POOL | {"dtype": "uint16", "fitted": RANGE}]}, "range"),
        ({"arrays": [POOL | {"block": "../up"}]}, "block"),
        ({"arrays": []}, "arrays"),
    ],
)
def test_arrays_that_cannot_be_are_refused(changes, word):
    """Two arrays of one name, codes without a range, a path for a name, nothing at all."""
    with pytest.raises(ValueError, match=word):
        schema_of(**changes)


def test_every_difference_is_a_sentence():
    """Another recipe, other arrays and other weights are all named; a longer store is the same."""
    schema = schema_of()
    assert schema.validate(schema_of(num_rows=900, manifest_rows=900)) == []
    other = schema_of(
        recipe={"seed": 1},
        arrays=[POOL | {"height": 1}],
        fingerprint_parts={"weights": "def"},
    )
    problems = " ".join(schema.validate(other))
    assert all(word in problems for word in ("recipe.seed", "layer2_0.pool", "layer3", "weights"))
