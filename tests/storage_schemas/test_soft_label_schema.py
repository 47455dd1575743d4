"""The schema: its JSON form is pinned, foreign ones are refused, differences are all named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from storage_schemas.errors import LabelSpaceError, SchemaMismatchError
from storage_schemas.label_space import LabelSpace
from storage_schemas.soft_labels import SoftLabelSchema, decode, encode

GOLDEN = Path(__file__).parent / "golden" / "soft_labels_v1.json"


def make_schema(**fields: object) -> SoftLabelSchema:
    values: dict[str, object] = {
        "teacher": "birds",
        "num_rows": 1500,
        "num_views": 4,
        "k": 2,
        "num_classes": 3,
        "temperatures": (1.0, 2.0),
        "shard_rows": 1024,
        "chunk_rows": 512,
        "classes": ("birds/kite", "birds/owl", "birds/\u00e9tourneau"),
        "global_ids": (5, 3, 9),
        "label_space_digest": "aa",
        "manifest_chain": "bb",
        "manifest_rows": 1500,
        "split": "train",
        "recipe": {"count": 4, "seed": 0, "crop": {"scale": [0.5, 1.0]}},
        "fingerprint_parts": {"weights": "cc", "k": 2},
        "library_versions": {"zarr": "3.1.6"},
        "created": "2026-11-21T00:00:00+00:00",
    }
    return SoftLabelSchema.model_validate(values | fields)


def test_attributes_are_the_golden_ones() -> None:
    """The JSON form of version 1 never changes."""
    assert make_schema().to_attributes() == json.loads(GOLDEN.read_text(encoding="utf-8"))


def test_attributes_from_before_there_were_selections_are_of_top_k() -> None:
    """The golden document, which names no selection, is read as a top_k store."""
    found = SoftLabelSchema.from_attributes(json.loads(GOLDEN.read_text(encoding="utf-8")), "x")
    assert found == make_schema()
    assert (found.selection, found.top_p) == ("top_k", None)


def test_golden_codes() -> None:
    """The stored numbers of a fixed teacher output, and what they decode to, never change."""
    schema = make_schema()
    ids, gaps = encode(
        schema,
        np.array([[2, 0], [1, 2]]),
        np.array([[4.0, 1.03], [0.5, 0.5]]),
        np.array([[3.5, 1.9], [0.2, 40.0]]),
    )
    assert ids.dtype == np.uint16
    assert gaps.dtype == np.uint8
    assert ids.tolist() == [[2, 0], [1, 2]]
    assert gaps.tolist() == [[48, 28, 15], [0, 2, 254]]
    found = decode(schema, ids, gaps, 2.0)
    np.testing.assert_allclose(
        found.log_probs, [[-0.3195334, -1.8195334], [-0.6931472, -0.6931472]], rtol=2e-6
    )
    np.testing.assert_allclose(found.log_tail, [-2.1945334, -32.443147], rtol=2e-6)


def test_attributes_round_trip_through_json() -> None:
    """from_attributes is the inverse of to_attributes."""
    schema = make_schema(activation="sigmoid", precision="exact", grown_at=(1000,), split=1)
    text = json.dumps(schema.to_attributes())
    assert SoftLabelSchema.from_attributes(json.loads(text), "here") == schema


def test_every_fault_of_foreign_attributes_is_listed() -> None:
    """A newer schema is refused as newer, with every unknown, missing and wrong field."""
    attributes = make_schema().to_attributes()
    attributes |= {"version": 2, "codebook": [1], "k": 0, "format": "other"}
    del attributes["teacher"]
    with pytest.raises(SchemaMismatchError) as caught:
        SoftLabelSchema.from_attributes(attributes, "x.zarr")
    text = str(caught.value)
    for part in ("version must be 1, got 2", "newer release", "codebook", "k:", "teacher"):
        assert part in text
    assert len(caught.value.problems) == 5


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("fingerprint", "0" * 16),
        ("encoding", {"gap_step": 0.5, "tail_step": 0.125, "tail_offset": 0.0}),
    ],
)
def test_derived_attributes_must_follow_from_the_rest(name: str, value: object) -> None:
    """A fingerprint or an encoding that the other fields do not give is refused."""
    attributes = make_schema().to_attributes() | {name: value}
    with pytest.raises(SchemaMismatchError, match=name):
        SoftLabelSchema.from_attributes(attributes, "x.zarr")


def test_validate_lists_every_difference() -> None:
    """All differing fields are named with what was expected and what was found."""
    expected = make_schema()
    found = make_schema(
        teacher="cars",
        num_views=3,
        k=1,
        temperatures=(1.0,),
        activation="sigmoid",
        precision="exact",
        split="test",
        manifest_chain="zz",
        classes=("birds/owl", "birds/kite", "birds/\u00e9tourneau"),
        recipe={"count": 3, "seed": 0, "flip": 0.5},
        fingerprint_parts={"weights": "dd", "k": 2},
    )
    problems = expected.validate(found)
    assert [problem.partition(" must be")[0] for problem in problems] == [
        "teacher",
        "num_views",
        "k",
        "activation",
        "temperatures",
        "precision",
        "split",
        "manifest_chain",
        "class 0",
        "recipe.count",
        "recipe.crop",
        "recipe.flip",
        "fingerprint_parts.weights",
    ]
    assert "'cc', got 'dd'" in problems[-1]
    assert "(and 1 more)" in problems[8]


def test_validate_lets_rows_space_and_layout_differ() -> None:
    """Growth, another label space order, another layout and other libraries are no difference."""
    found = make_schema(
        num_rows=9000,
        manifest_rows=1000,
        manifest_chain="older",
        grown_at=(1000,),
        shard_rows=2048,
        global_ids=(1, 2, 3),
        label_space_digest="other",
        library_versions={},
        created="",
    )
    assert make_schema().validate(found) == []


def test_classes_bind_by_name() -> None:
    """The class map is resolved in the space given; lost classes are all named."""
    space = LabelSpace(classes=("birds/\u00e9tourneau", "birds/owl", "birds/kite"))
    assert make_schema().resolve(space).global_ids.tolist() == [2, 1, 0]
    with pytest.raises(LabelSpaceError) as caught:
        make_schema().resolve(LabelSpace(classes=("birds/owl",)))
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize(
    "fields",
    [
        {"k": 4},
        {"classes": ("a/b", "a/b", "a/c")},
        {"classes": ("a/b",)},
        {"global_ids": (1, 1, 2)},
        {"temperatures": (1.0, 1.0)},
        {"temperatures": (0.0,)},
        {"temperatures": (float("inf"),)},
        {"temperatures": ()},
        {"shard_rows": 100, "chunk_rows": 64},
        {"surprise": 1},
    ],
)
def test_fields_must_fit_together(fields: dict[str, object]) -> None:
    """A schema that contradicts itself cannot be made."""
    with pytest.raises(ValidationError):
        make_schema(**fields)


@pytest.mark.parametrize(
    ("num_classes", "k", "offset"), [(3, 2, 0.0), (1000, 16, 7.0), (100_000, 16, 12.0)]
)
def test_tail_offset_covers_the_largest_possible_tail(
    num_classes: int, k: int, offset: float
) -> None:
    """Log p1 - log tail is at least -log(C_t - K), and the offset is the next whole number."""
    names = tuple(f"a/{i}" for i in range(num_classes))
    schema = make_schema(
        num_classes=num_classes, k=k, classes=names, global_ids=tuple(range(num_classes))
    )
    assert schema.encoding["tail_offset"] == offset
    assert offset >= np.log(num_classes - k)
