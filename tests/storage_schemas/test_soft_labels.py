"""The soft-label code: what goes in comes out, within the error that the specification allows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage_schemas.errors import SchemaMismatchError
from storage_schemas.soft_labels import SoftLabelSchema, decode, encode

Floats = npt.NDArray[np.float64]


def make_schema(num_classes: int, k: int, **fields: object) -> SoftLabelSchema:
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


def top(logits: Floats, k: int) -> tuple[npt.NDArray[np.int64], Floats, Floats]:
    """Return ids, logits of the top k, and the rest, of (B, C) logits."""
    order = np.argsort(-logits, axis=1, kind="stable")
    ranked = np.take_along_axis(logits, order, axis=1)
    return order[:, :k], ranked[:, :k], ranked[:, k:]


def tail_ratio(best: Floats, rest: Floats, temperatures: tuple[float, ...]) -> Floats:
    """Return log p1 - log tail mass, (B, temperatures); +inf without a tail."""
    columns = []
    for t in temperatures:
        with np.errstate(divide="ignore"):
            tail = np.log(np.exp((rest - best[:, :1]) / t).sum(axis=1))
        columns.append(-tail)
    return np.stack(columns, axis=1)


@st.composite
def outputs(draw: st.DrawFn, spread: float) -> tuple[SoftLabelSchema, Floats]:
    num_classes = draw(st.integers(1, 40))
    k = draw(st.integers(1, num_classes))
    schema = make_schema(
        num_classes,
        k,
        activation=draw(st.sampled_from(["softmax", "sigmoid"])),
        precision=draw(st.sampled_from(["compact", "exact"])),
        temperatures=draw(st.sampled_from([(1.0,), (2.0, 1.0), (0.5, 1.0, 4.0)])),
    )
    seed = draw(st.integers(0, 2**32 - 1))
    scale = draw(st.floats(0.0, spread))
    logits = np.random.default_rng(seed).uniform(-1, 1, (3, num_classes)) * scale
    return schema, logits.astype(np.float32).astype(np.float64)


@settings(max_examples=150, deadline=None)
@given(outputs(spread=7.0))
def test_error_of_every_rank_is_within_half_a_step(case: tuple[SoftLabelSchema, Floats]) -> None:
    """Without clipping, distances (softmax) and logits (sigmoid) are off by at most step / 2."""
    schema, logits = case
    ids, best, rest = top(logits, schema.k)
    stored_ids, gaps = encode(schema, ids, best, tail_ratio(best, rest, schema.temperatures))
    step = schema.encoding["gap_step"]
    ranks = np.cumsum(gaps[:, : schema.k - 1], axis=1, dtype=np.float64) * step
    if schema.activation == "softmax":
        errors = ranks - (best[:, :1] - best[:, 1:])
    else:
        levels = gaps[:, -1:] * step - schema.encoding["top_offset"]
        errors = levels - np.concatenate([np.zeros((3, 1)), ranks], axis=1) - best
    assert np.abs(errors).max(initial=0) <= step / 2 + 1e-9
    assert gaps.max() < schema.gaps_fill
    np.testing.assert_array_equal(stored_ids, ids)


@settings(max_examples=150, deadline=None)
@given(outputs(spread=40.0))
def test_decoded_softmax_is_normalised_with_its_tail(
    case: tuple[SoftLabelSchema, Floats],
) -> None:
    """At every temperature the mass is one and the tail is within half a tail step."""
    schema, logits = case
    schema = schema.model_copy(update={"activation": "softmax"})
    ids, best, rest = top(logits, schema.k)
    ratio = tail_ratio(best, rest, schema.temperatures)
    stored = encode(schema, ids, best, ratio)
    for position, temperature in enumerate(schema.temperatures):
        found = decode(schema, *stored, temperature)
        mass = np.exp(found.log_probs).sum(axis=1) + np.exp(found.log_tail)
        np.testing.assert_allclose(mass, 1, atol=2e-6)
        np.testing.assert_array_equal(found.ids, ids)
        if schema.k == schema.num_classes:
            assert np.isneginf(found.log_tail).all()
            continue
        code = schema.encoding
        largest = (schema.gaps_fill - 1) * code["tail_step"] - code["tail_offset"]
        wanted = np.minimum(ratio[:, position], largest)
        errors = found.log_probs[:, 0] - found.log_tail - wanted
        assert np.abs(errors).max() <= code["tail_step"] / 2 + 1e-4


def test_exact_code_agrees_with_a_dense_softmax() -> None:
    """With 16-bit gaps, decoded log-probabilities equal the dense ones to 1/1000 nat."""
    schema = make_schema(200, 16, precision="exact", temperatures=(1.0, 2.0))
    logits = np.random.default_rng(0).normal(0, 3, (100, 200))
    ids, best, rest = top(logits, 16)
    stored = encode(schema, ids, best, tail_ratio(best, rest, (1.0, 2.0)))
    for temperature in (1.0, 2.0):
        scaled = logits / temperature
        dense = scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True))
        found = decode(schema, *stored, temperature)
        expected = np.take_along_axis(dense, ids, axis=1)
        np.testing.assert_allclose(found.log_probs, expected, atol=1e-3)
        in_top = np.exp(expected).sum(axis=1)
        np.testing.assert_allclose(np.exp(found.log_tail), 1 - in_top, atol=1e-3)


def test_sigmoid_gives_independent_probabilities_and_no_tail() -> None:
    """Under sigmoid each probability is sigmoid(logit / T), and the tail is zero."""
    schema = make_schema(5, 3, activation="sigmoid", precision="exact", temperatures=(1.0, 2.0))
    logits = np.array([[3.0, 0.5, -9.0], [-2.0, -2.0, -15.0]])
    stored = encode(schema, np.array([[0, 1, 2], [4, 3, 0]]), logits, np.full((2, 2), np.inf))
    assert stored[1].shape == (2, 3)
    for temperature in (1.0, 2.0):
        found = decode(schema, *stored, temperature)
        expected = -np.log1p(np.exp(-logits / temperature))
        np.testing.assert_allclose(found.log_probs, expected, atol=1e-3)
        assert np.isneginf(found.log_tail).all()


def test_sigmoid_clips_the_top_but_keeps_the_lower_ranks() -> None:
    """A top logit out of range is clipped; logits in range below it are still right."""
    schema = make_schema(5, 3, activation="sigmoid")
    logits = np.array([[20.0, 12.0, 2.0], [-9.0, -9.5, -10.0]])
    stored = encode(schema, np.array([[0, 1, 2], [0, 1, 2]]), logits, np.full((2, 1), np.inf))
    found = decode(schema, *stored, 1.0)
    assert found.log_probs[0, 2] == pytest.approx(-np.log1p(np.exp(-2.0)), abs=0.01)
    assert stored[1][0].tolist() == [0, 94, 254]
    assert stored[1][1].tolist() == [24, 8, 0]


def test_a_clipped_gap_is_caught_up_by_the_gaps_after_it() -> None:
    """A gap wider than the code is spread over the next ranks, never stored as fill."""
    schema = make_schema(10, 4)
    _, gaps = encode(
        schema, np.array([[0, 1, 2, 3]]), np.array([[0.0, -20.0, -20.5, -40.0]]), np.zeros((1, 1))
    )
    assert gaps[0, :3].tolist() == [254, 74, 254]


def test_values_far_out_of_range_saturate() -> None:
    """Huge distances and an infinite tail ratio give the largest valid code, not the fill."""
    schema = make_schema(10, 3)
    logits = np.array([[0.0, -3e38, -3e38]], np.float32)
    ids, gaps = encode(schema, np.array([[7, 8, 9]]), logits, np.full((1, 1), np.inf))
    assert gaps[0].tolist() == [254, 254, 254]
    assert np.isfinite(decode(schema, ids, gaps).log_probs).all()


@pytest.mark.parametrize(("num_classes", "k"), [(1, 1), (2, 1), (70_000, 1), (7, 7)])
def test_smallest_and_largest_supports(num_classes: int, k: int) -> None:
    """K = 1, K = C_t, one class, and ids that need uint32 all round-trip."""
    schema = make_schema(num_classes, k)
    assert schema.ids_dtype == (np.uint32 if num_classes > 65_535 else np.uint16)
    ids = np.array([[*range(num_classes - k, num_classes)]])
    ratio = np.full((1, 1), np.inf if k == num_classes else 0.0)
    found = decode(schema, *encode(schema, ids, np.zeros((1, k)), ratio))
    np.testing.assert_array_equal(found.ids, ids)
    p1 = 1 / k if k == num_classes else 0.5
    np.testing.assert_allclose(np.exp(found.log_probs), p1, rtol=1e-5)


def test_the_largest_id_is_never_the_fill() -> None:
    """A teacher with 65,535 classes still has an id to spare for not labelled."""
    schema = make_schema(65_535, 1)
    assert schema.ids_dtype == np.uint16
    ids, _ = encode(schema, np.array([[65_534]]), np.zeros((1, 1)), np.zeros((1, 1)))
    assert int(ids[0, 0]) < schema.ids_fill


def test_fill_decodes_to_nothing() -> None:
    """A row that was not written has id -1 and no mass, beside rows that were."""
    schema = make_schema(10, 3)
    ids, gaps = schema.empty(2)
    ids[1], gaps[1] = [4, 5, 6], [1, 1, 8]
    found = decode(schema, ids, gaps)
    assert found.ids.tolist() == [[-1, -1, -1], [4, 5, 6]]
    assert np.isneginf(found.log_probs[0]).all()
    assert np.isneginf(found.log_tail[0])
    assert np.isfinite(found.log_probs[1]).all()


@pytest.mark.parametrize("k", [1, 3, 16, 40])
def test_a_row_decodes_alike_in_any_batch(k: int) -> None:
    """Decoding is bit for bit independent of the batch."""
    schema = make_schema(50, k, temperatures=(1.0, 3.0))
    rng = np.random.default_rng(1)
    ids, best, rest = top(rng.normal(0, 4, (131, 50)), k)
    ids, gaps = encode(schema, ids, best, tail_ratio(best, rest, schema.temperatures))
    whole = decode(schema, ids, gaps, 3.0)
    for row in (0, 1, 64, 130):
        alone = decode(schema, ids[row : row + 1], gaps[row : row + 1], 3.0)
        np.testing.assert_array_equal(alone.log_probs[0], whole.log_probs[row])
        assert alone.log_tail[0] == whole.log_tail[row]


def test_undeclared_temperature_is_refused() -> None:
    """Decoding at a temperature without a tail lists the declared ones."""
    schema = make_schema(10, 3, temperatures=(1.0, 2.0))
    with pytest.raises(SchemaMismatchError, match=r"one of \[1\.0, 2\.0\], got 4\.0"):
        decode(schema, *schema.empty(1), 4.0)


@pytest.mark.parametrize(
    ("ids", "logits", "ratio", "message"),
    [
        ([[0, 1, 2]], [[0.0, 0.0]], [[0.0]], "must be"),
        ([[0, 10]], [[0.0, 0.0]], [[0.0]], "0..9"),
        ([[-1, 1]], [[0.0, 0.0]], [[0.0]], "0..9"),
        ([[0, 1]], [[np.nan, 0.0]], [[0.0]], "finite"),
        ([[0, 1]], [[0.0, -np.inf]], [[0.0]], "finite"),
        ([[0, 1]], [[0.0, 1.0]], [[0.0]], "increase"),
        ([[0, 1]], [[0.0, 0.0]], [[0.0, 0.0]], "log_tail_ratio"),
        ([[0, 1]], [[0.0, 0.0]], [[np.nan]], "NaN"),
    ],
)
def test_impossible_outputs_are_refused(
    ids: list[list[int]], logits: list[list[float]], ratio: list[list[float]], message: str
) -> None:
    """Encode refuses wrong shapes, ids out of range, NaN, Inf and unsorted logits."""
    with pytest.raises(ValueError, match=message):
        encode(make_schema(10, 2), np.array(ids), np.array(logits), np.array(ratio))
