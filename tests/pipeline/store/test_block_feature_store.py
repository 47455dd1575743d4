"""Block features on a disk and in a bucket: written whole, read only as written."""

from __future__ import annotations

import pickle
import shutil

import numpy as np
import pytest
import torch

from pipeline.objectives.stored_signals import StoredSignals
from pipeline.store import (
    create_block_features,
    open_block_features,
    open_soft_labels,
    take_out_of_use,
    verify_store,
)
from pipeline.store.coverage import missing_labels
from pipeline.store.layout import shard_file
from pipeline.store.repair import repair_metadata
from storage_schemas.block_features import BlockFeatureSchema, FittedArray, fitted_digest
from storage_schemas.errors import CorruptLabelError, MissingLabelError, SchemaMismatchError

LIMITS = np.stack([np.full(3, -1.0), np.full(3, 1 / 64)])
ROWS = np.arange(40, 260)
NONE = np.zeros(0, np.int64)


def schema_of(**fields):
    """Two arrays of one teacher, one of them with a fitted range."""
    limits = FittedArray(shape=LIMITS.shape, digest=fitted_digest(LIMITS))
    size = {"channels": 3, "height": 2, "width": 1}
    values = {
        "teacher": "birds",
        "num_rows": 300,
        "num_views": 2,
        "shard_rows": 128,
        "chunk_rows": 32,
        "arrays": [
            {"block": "layer1", "reduce": "pool", **size},
            {
                "block": "b.2",
                "reduce": "pool",
                **size,
                "dtype": "uint8",
                "fitted": {"range": limits},
            },
        ],
        "fingerprint_parts": {"weights": "abc"},
    }
    return BlockFeatureSchema.model_validate(values | fields)


def values_of(rows, view):
    """(n, 3, 2, 1) features within +-1, a pure function of row and view."""
    flat = np.arange(6)[None] + 7 * rows[:, None] + 1000 * view
    return np.sin(flat).astype(np.float32).reshape(-1, 3, 2, 1)


def fill_shard(store, view, shard, rows=ROWS):
    """Write the rows of one shard."""
    span = store.shard_span(shard)
    inside = rows[np.isin(rows, np.array(span))]
    data = store.empty_shard()
    for array, codes in zip(store.schema.arrays, data, strict=True):
        codes[inside - span.start] = store.encode(array.name, values_of(inside, view))
    return store.write_shard(view, shard, *data)


@pytest.fixture
def store(location):
    """A full store in which rows 40 to 259 are written."""
    place = location / "features" / "birds" / "store.zarr"
    made = create_block_features(place, schema_of(), {"range/b_2.pool": LIMITS})
    for view, shard in np.ndindex(2, 3):
        fill_shard(made, view, shard)
    return open_block_features(made.path)


@pytest.mark.parametrize("location", ["local", "s3"], indirect=True)
def test_what_is_written_is_read(store):
    """Rows in any order and view come back within the error of their type, on disk and bucket."""
    rng = np.random.default_rng(0)
    rows, views = rng.choice(ROWS, 50), rng.integers(0, 2, 50)
    expected = np.concatenate([values_of(rows[i : i + 1], views[i]) for i in range(50)])
    for reader in (store, pickle.loads(pickle.dumps(store))):
        found = reader.fetch(rows, views)
        assert np.abs(found["layer1.pool"].values - expected).max() < 2**-11
        assert np.abs(found["b_2.pool"].values - expected).max() <= 1 / 128 + 1e-6
    store.hold(ROWS)
    assert (store.fetch(rows, views)["b_2.pool"].values == found["b_2.pool"].values).all()
    assert verify_store(store, "full", ROWS) == []
    assert missing_labels(store, ROWS, NONE) == []
    assert store.commits.shape == (2, 3, 3)


def test_what_is_not_written_is_not_read(store):
    """A row without features is refused by name, and a shard without a record too."""
    with pytest.raises(MissingLabelError, match=r"\[7\]"):
        store.fetch(np.array([50, 7]), np.array([0, 0]))
    store.discard_shard(1, 1)
    with pytest.raises(MissingLabelError, match="view 1, shard 1"):
        store.fetch(np.array([150]), np.array([1]))
    assert missing_labels(store, ROWS, NONE) == [(1, 1)]


@pytest.mark.parametrize("name", ["layer1.pool", "b_2.pool"])
def test_a_flipped_bit_is_found_and_never_read(store, name):
    """Full verification names the shard, reading refuses it, and it can be written again."""
    file = shard_file(store.path, name, 1, 1, 3)
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 4
    file.write_bytes(content)
    (problem,) = verify_store(store, "full", ROWS)
    assert f"array {name}, view 1, shard 1" in problem
    with pytest.raises(CorruptLabelError):
        open_block_features(store.path).fetch(np.array([150]), np.array([1]))
    take_out_of_use(store, "full")
    assert missing_labels(store, ROWS, NONE) == [(1, 1)]
    fill_shard(store, 1, 1)
    assert verify_store(store, "full", ROWS) == []


def test_shards_are_valid_in_their_own_place_only(store):
    """A shard that was copied to another place, record and all, is damage."""
    for name, axes in (("layer1.pool", 3), ("b_2.pool", 3), ("commits", 1)):
        one, other = (shard_file(store.path, name, view, 1, axes) for view in (0, 1))
        shutil.copy(one, other)
    with pytest.raises(CorruptLabelError, match="crc32c"):
        store.read_shard(1, 1)


def test_altered_constants_are_never_used(store):
    """A range that is not the one that was fitted is refused and reported."""
    other = shard_file(store.path, "range/b_2.pool", 0, 0, 0)
    content = bytearray(other.read_bytes())
    content[3] ^= 1
    other.write_bytes(content)
    again = open_block_features(store.path)
    assert any("range/b_2.pool" in problem for problem in verify_store(again, "quick"))
    with pytest.raises(CorruptLabelError, match=r"range/b_2\.pool"):
        again.fetch(np.array([150]), np.array([1]))


def test_another_implementation_reads_the_same(store):
    """tensorstore, which knows the core codecs alone, sees the values, and fill elsewhere."""
    import tensorstore

    for array in store.schema.stored_arrays:
        path = f"file://{store.path}/{array.name}"
        other = tensorstore.open({"driver": "zarr3", "kvstore": path}).result()
        found = np.asarray(other[1].read().result())
        assert other.domain.labels == ("view", "row", *array.dimensions)
        assert (~array.absent(found)).nonzero()[0].tolist() == ROWS.tolist()
        assert (found[128:256] == store.read_shard(1, 1)[0 if array.name[0] == "l" else 1]).all()


def test_a_store_grows(store):
    """New rows get room, old shards stay valid, only the last one is to be written again."""
    store.grow(400)
    rows = np.concatenate([ROWS, np.arange(300, 400)])
    assert missing_labels(store, rows, NONE) == [(0, 2), (0, 3), (1, 2), (1, 3)]
    for view, shard in missing_labels(store, rows, NONE):
        fill_shard(store, view, shard, rows)
    assert verify_store(open_block_features(store.path), "full", rows) == []
    assert store.schema.grown_at == (300,)


def test_another_kind_or_schema_is_refused(store):
    """A reader of soft labels refuses it, and so does one that expects other features."""
    with pytest.raises(SchemaMismatchError, match="soft-label store"):
        open_soft_labels(store.path)
    with pytest.raises(SchemaMismatchError) as caught:
        open_block_features(
            store.path, expected=schema_of(num_views=3, recipe={"seed": 5}, teacher="fish")
        )
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize("name", ["", "layer1.pool", "commits", "range/b_2.pool", "range"])
def test_lost_metadata_are_made_again(store, name):
    """A lost document costs no shard."""
    before = store.commits
    file = (store.path / name if name else store.path) / "zarr.json"
    content = file.read_bytes()
    file.unlink()
    assert repair_metadata(store.path, schema_of()) != []
    again = open_block_features(store.path)
    assert (again.commits == before).all()
    assert verify_store(again, "full", ROWS) == []
    if name:
        assert file.read_bytes() == content


def test_signals_have_features_of_routed_rows(store):
    """A batch holds each array under its name; rows of another teacher are absent and zero."""
    labels = np.zeros(300, np.int64)
    labels[ROWS[::2]] = 1
    routes = np.array([[False], [True], [False]])
    held = np.flatnonzero(labels)
    signals = StoredSignals(labels, routes=routes, features={0: store}, held_rows=held)
    streamed = StoredSignals(labels, routes=routes, features={0: open_block_features(store.path)})
    assert signals.provides == {"labels", "features"}
    found = signals.fetch(np.array([40, 41, 42]), np.array([0, 0, 1])).features
    assert set(found) == set(store.shapes) == {"birds/layer1.pool", "birds/b_2.pool"}
    batch = found["birds/layer1.pool"]
    assert batch.present.tolist() == [True, False, True]
    assert tuple(batch.values.shape) == (3, *store.shapes["birds/layer1.pool"])
    assert (batch.values[1] == 0).all()
    expected = torch.from_numpy(values_of(np.array([42]), 1)[0])
    assert (batch.values[2] - expected).abs().max() < 2**-11
    again = streamed.fetch(np.array([40, 41, 42]), np.array([0, 0, 1])).features
    assert torch.equal(again["birds/layer1.pool"].values, batch.values)
