"""The decoder against the formulas of the specification, written out row by row."""

from __future__ import annotations

import numpy as np
import pytest

from storage_schemas.soft_labels import SoftLabelSchema, decode


@pytest.mark.parametrize("k", [1, 2, 7, 8, 9, 16, 33, 130, 300])
@pytest.mark.parametrize("precision", ["compact", "exact"])
def test_bits_do_not_depend_on_the_way_that_ranks_lie(k, precision):
    """Equal to the last bit to sums along the ranks of each row, in blocks and alone."""
    classes = k + 40
    schema = SoftLabelSchema(
        teacher="t",
        num_rows=16,
        num_views=1,
        k=k,
        num_classes=classes,
        temperatures=(2.0,),
        precision=precision,
        shard_rows=16,
        chunk_rows=16,
        classes=tuple(f"v/{i}" for i in range(classes)),
        global_ids=tuple(range(classes)),
        fingerprint_parts={},
    )
    rng = np.random.default_rng(k)
    rows = 5_000 if k == 16 else 50
    ids = np.tile(np.arange(k), (rows, 1)).astype(schema.ids_dtype)
    gaps = rng.integers(0, schema.gaps_fill, (rows, schema.columns)).astype(schema.gaps_dtype)
    gaps[::2] //= 16
    code = schema.encoding
    scaled = np.zeros((rows, k), np.float32)
    ranks = np.cumsum(gaps[:, : k - 1], axis=1, dtype=np.int64)
    scaled[:, 1:] = ranks * np.float64(np.float32(-code["gap_step"] / 2.0))
    steps = gaps[:, -1].astype(np.float32) * np.float32(code["tail_step"])
    tail = np.float32(code["tail_offset"]) - steps
    norm = np.log(np.exp(scaled).sum(axis=1) + np.exp(tail))
    found = decode(schema, ids, gaps, 2.0)
    assert found.log_probs.tobytes() == (scaled - norm[:, None]).tobytes()
    assert found.log_tail.tobytes() == (tail - norm).tobytes()
    alone = decode(schema, ids[-1:], gaps[-1:], 2.0)
    assert alone.log_probs.tobytes() == found.log_probs[-1:].tobytes()
