"""Rows of fewer than K ranks (top_p), counts (sampled): the schema, the code, what is refused."""

from __future__ import annotations

import json

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from storage_schemas.errors import SchemaMismatchError
from storage_schemas.soft_labels import SoftLabelSchema, decode, encode, encode_counts

Floats = npt.NDArray[np.float64]


def make_schema(num_classes: int = 10, k: int = 4, **fields: object) -> SoftLabelSchema:
    values: dict[str, object] = {
        "teacher": "birds",
        "num_rows": 64,
        "num_views": 1,
        "k": k,
        "num_classes": num_classes,
        "shard_rows": 64,
        "chunk_rows": 64,
        "classes": tuple(f"birds/{i}" for i in range(num_classes)),
        "global_ids": tuple(range(num_classes)),
    }
    return SoftLabelSchema.model_validate(values | fields)


# --- the schema -----------------------------------------------------------------------------------


def test_attributes_name_a_selection_only_where_it_is_not_the_default() -> None:
    """A top_k store says nothing that older readers do not know; the others say what they are."""
    assert not {"selection", "top_p"} & set(make_schema().to_attributes())
    nucleus = make_schema(selection="top_p", top_p=0.9)
    assert nucleus.to_attributes()["top_p"] == 0.9
    for schema in (make_schema(), nucleus, make_schema(selection="sampled")):
        text = json.dumps(schema.to_attributes())
        assert SoftLabelSchema.from_attributes(json.loads(text), "here") == schema


def test_a_selection_is_a_difference() -> None:
    """Stores of another selection, or another mass, are refused with both values."""
    expected = make_schema(selection="top_p", top_p=0.9)
    (problem,) = expected.validate(make_schema(selection="top_p", top_p=0.5))
    assert problem == "top_p must be 0.9, got 0.5"
    assert "selection must be 'top_p', got 'top_k'" in expected.validate(make_schema())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"selection": "top_p"}, r"top_p must be in \(0, 1\] under selection top_p, got None"),
        ({"top_p": 0.5}, "top_p must be left out under selection top_k, got 0.5"),
        ({"selection": "top_p", "top_p": 1.5}, "less than or equal to 1"),
        ({"selection": "top_p", "top_p": 0.0}, "greater than 0"),
        ({"selection": "top_p", "top_p": 0.5, "activation": "sigmoid"}, "needs activation softmax"),
        ({"selection": "sampled", "activation": "sigmoid"}, "needs activation softmax"),
        ({"selection": "sampled", "temperatures": (1.0, 2.0)}, r"one temperature.*\[1.0, 2.0\]"),
        ({"selection": "sampled", "k": 255}, "at most 254 with precision compact, got 255"),
        ({"selection": "top_p", "top_p": 0.5, "k": 11}, "at most num_classes"),
    ],
)
def test_settings_that_do_not_go_with_the_selection_are_refused(
    fields: dict[str, object], message: str
) -> None:
    """A schema that contradicts its selection cannot be made."""
    with pytest.raises(ValidationError, match=message):
        make_schema(**fields)  # type: ignore[arg-type]


def test_more_draws_than_classes_are_allowed() -> None:
    """Under sampled K counts draws, and the largest count of a byte is 254."""
    schema = make_schema(2, 254, selection="sampled")
    assert (schema.columns, schema.encoding) == (254, {"draws": 254.0})
    ids, counts = np.full((1, 254), -1), np.zeros((1, 254), np.int64)
    ids[0, 0], counts[0, 0] = 1, 254
    stored = encode_counts(schema, ids, counts)
    assert stored[1][0, 0] == 254 < schema.gaps_fill
    assert np.exp(decode(schema, *stored).log_probs[0]).tolist() == [1.0] + [0.0] * 253


def test_the_tail_offset_of_top_p_holds_for_a_single_rank() -> None:
    """With n = 1 the tail may hold C_t - 1 equal classes, and its code does not clip."""
    schema = make_schema(1000, 16, selection="top_p", top_p=0.5)
    assert schema.encoding["tail_offset"] == 7.0
    assert make_schema(1, 1, selection="top_p", top_p=0.5).encoding["tail_offset"] == 0.0
    ids = np.full((1, 16), -1)
    ids[0, 0] = 3
    ratio = np.full((1, 1), -np.log(999))
    stored = encode(schema, ids, np.zeros((1, 16)), ratio)
    assert decode(schema, *stored).log_probs[0, 0] == pytest.approx(-np.log(1000), abs=1 / 16)


# --- top_p ----------------------------------------------------------------------------------------


@st.composite
def nuclei(draw: st.DrawFn) -> tuple[SoftLabelSchema, Floats, npt.NDArray[np.int64]]:
    """A top_p schema, logits (B, C_t) and the number of ranks of each row."""
    num_classes = draw(st.integers(1, 30))
    k = draw(st.integers(1, num_classes))
    schema = make_schema(
        num_classes,
        k,
        selection="top_p",
        top_p=0.9,
        precision=draw(st.sampled_from(["compact", "exact"])),
        temperatures=draw(st.sampled_from([(1.0,), (2.0, 1.0), (0.5, 4.0)])),
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    logits = rng.uniform(-1, 1, (5, num_classes)) * draw(st.floats(0, 8))
    return schema, logits, rng.integers(1, k + 1, 5)


@settings(max_examples=150, deadline=None)
@given(nuclei())
def test_a_row_of_n_ranks_decodes_to_its_nucleus(
    case: tuple[SoftLabelSchema, Floats, npt.NDArray[np.int64]],
) -> None:
    """Every row is normalised over its own n ranks and tail, at every temperature, alone too."""
    schema, logits, kept = case
    order = np.argsort(-logits, axis=1, kind="stable")
    ranked = np.take_along_axis(logits, order, axis=1)
    absent = np.arange(schema.k) >= kept[:, None]
    ids = np.where(absent, -1, order[:, : schema.k])
    rest = np.where(np.arange(schema.num_classes) < kept[:, None], -np.inf, ranked)
    with np.errstate(divide="ignore"):
        columns = [-np.log(np.exp((rest - ranked[:, :1]) / t).sum(1)) for t in schema.temperatures]
    # What stands at absent ranks is never read.
    values = np.where(absent, np.nan, ranked[:, : schema.k])
    stored = encode(schema, ids, values, np.stack(columns, axis=1))
    np.testing.assert_array_equal(stored[0] == schema.ids_fill, absent)
    np.testing.assert_array_equal(stored[1][:, : schema.k - 1] == schema.gaps_fill, absent[:, 1:])
    assert (stored[1][:, schema.k - 1 :] < schema.gaps_fill).all()
    for t, ratio in zip(schema.temperatures, columns, strict=True):
        found = decode(schema, *stored, t)
        np.testing.assert_array_equal(found.ids, ids)
        np.testing.assert_array_equal(np.isneginf(found.log_probs), absent)
        mass = np.exp(found.log_probs).sum(axis=1) + np.exp(found.log_tail)
        np.testing.assert_allclose(mass, 1, atol=2e-6)
        np.testing.assert_array_equal(np.isneginf(found.log_tail), kept == schema.num_classes)
        largest = (schema.gaps_fill - 1) * schema.encoding["tail_step"]
        has_tail = kept < schema.num_classes
        errors = (found.log_probs[:, 0] - found.log_tail)[has_tail] - np.minimum(
            ratio[has_tail], largest - schema.encoding["tail_offset"]
        )
        assert np.abs(errors).max(initial=0) <= schema.encoding["tail_step"] / 2 + 1e-4
        distances = (found.log_probs[:, :1] - found.log_probs)[~absent]
        wanted = ((ranked[:, :1] - ranked[:, : schema.k]) / t)[~absent]
        step = schema.encoding["gap_step"]
        clipped = wanted * t > step * (schema.gaps_fill - 1)
        assert np.abs(distances - wanted)[~clipped].max(initial=0) <= step / 2 / t + 1e-4
        alone = decode(schema, stored[0][2:3], stored[1][2:3], t)
        np.testing.assert_array_equal(alone.log_probs[0], found.log_probs[2])


def test_golden_codes_of_top_p() -> None:
    """The stored numbers of a row of two ranks among three, and of a whole one, never change."""
    schema = make_schema(5, 3, selection="top_p", top_p=0.9, temperatures=(1.0, 2.0))
    ids, gaps = encode(
        schema,
        np.array([[4, 0, -1], [1, 2, 3]]),
        np.array([[4.0, 1.03, 9.0], [0.5, 0.5, 0.0]]),
        np.array([[3.5, 1.9], [0.2, 40.0]]),
    )
    assert ids.tolist() == [[4, 0, 65535], [1, 2, 3]]
    assert gaps.tolist() == [[48, 255, 44, 31], [0, 8, 18, 254]]
    norm = np.log(1 + np.exp(-3) + np.exp(-3.5))
    np.testing.assert_allclose(
        decode(schema, ids, gaps, 1.0).log_probs[0], [-norm, -3 - norm, -np.inf], rtol=1e-6
    )


# --- sampled --------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 40), st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_counts_come_back_as_shares(num_classes: int, k: int, seed: int) -> None:
    """Any draws are stored without loss: log p is log(count / K), and there is no tail."""
    schema = make_schema(num_classes, k, selection="sampled", temperatures=(2.0,))
    drawn = np.random.default_rng(seed).integers(0, num_classes, k)
    found, times = np.unique(drawn, return_counts=True)
    order = np.argsort(-times, kind="stable")
    ids, counts = np.full((1, k), -1), np.zeros((1, k), np.int64)
    ids[0, : len(found)], counts[0, : len(found)] = found[order], times[order]
    labels = decode(schema, *encode_counts(schema, ids, counts), 2.0)
    np.testing.assert_array_equal(labels.ids, ids)
    np.testing.assert_allclose(np.exp(labels.log_probs.astype(float)), counts / k, atol=1e-6)
    assert np.isneginf(labels.log_tail).all()
    with pytest.raises(SchemaMismatchError, match=r"one of \[2\.0\], got 1\.0"):
        decode(schema, *schema.empty(1), 1.0)


def test_fill_decodes_to_nothing_under_every_selection() -> None:
    """A row that was not written has no id and no mass."""
    for fields in ({"selection": "sampled"}, {"selection": "top_p", "top_p": 0.9}):
        schema = make_schema(**fields)  # type: ignore[arg-type]
        found = decode(schema, *schema.empty(2))
        assert (found.ids == -1).all()
        assert np.isneginf(found.log_probs).all()
        assert np.isneginf(found.log_tail).all()


# --- refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "message"),
    [([[-1, -1]], "rank 0 must be there"), ([[0, 10]], r"0\.\.9"), ([[-2, -1]], r"0\.\.9")],
)
def test_ids_that_are_no_prefix_are_refused(ids: list[list[int]], message: str) -> None:
    """Encode refuses rows without a first rank and ids out of range."""
    with pytest.raises(ValueError, match=message):
        encode(
            make_schema(k=2, selection="top_p", top_p=0.9),
            np.array(ids),
            np.zeros((1, 2)),
            np.zeros((1, 1)),
        )
    with pytest.raises(ValueError, match=message):
        encode_counts(make_schema(k=2, selection="sampled"), np.array(ids), np.array([[1, 1]]))


def test_a_hole_among_the_ranks_is_refused() -> None:
    """A rank after an absent one is never stored."""
    with pytest.raises(ValueError, match="first absent rank"):
        encode(
            make_schema(k=3, selection="top_p", top_p=0.9),
            np.array([[0, -1, 2]]),
            np.zeros((1, 3)),
            np.zeros((1, 1)),
        )


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([[2, 1, 1]], "sum to 3"),
        ([[3, 0, 0]], "0 where the id is -1"),
        ([[1, 2, 0]], "must not increase"),
        ([[4, -1, 0]], "at least 1"),
    ],
)
def test_counts_that_are_not_of_k_draws_are_refused(counts: list[list[int]], message: str) -> None:
    """Counts of too many draws, of absent ids, rising or negative ones are never stored."""
    with pytest.raises(ValueError, match=message):
        encode_counts(
            make_schema(k=3, selection="sampled"), np.array([[5, 1, -1]]), np.array(counts)
        )


def test_logits_and_counts_are_not_mixed_up() -> None:
    """Under sampled there is nothing to quantise: encode says which function to use."""
    with pytest.raises(ValueError, match="use encode_counts"):
        encode(
            make_schema(k=1, selection="sampled"),
            np.zeros((1, 1), np.int64),
            np.zeros((1, 1)),
            np.zeros((1, 1)),
        )
