"""Targets of (row, view) pairs, joined from several stores."""

from __future__ import annotations

import pickle
import threading

import numpy as np
import pytest
import torch

from pipeline.data.epoch_order import BatchOrder
from pipeline.data.loader import BatchDataset, batch_loader
from pipeline.objectives.stored_signals import StoredSignals
from pipeline.store import create_soft_labels
from storage_schemas.errors import MissingLabelError
from storage_schemas.soft_labels import SoftLabelSchema, encode

CLASSES = 6
LABELS = np.array([0, 0, 1, 2, 3, 3, 4, 5, -1, 5], np.int32)


def make_store(folder, name, global_ids, rows, k):
    """A store in which the label of (row, view) can be told from its ids."""
    schema = SoftLabelSchema(
        teacher=name,
        num_rows=len(LABELS),
        num_views=2,
        k=k,
        num_classes=len(global_ids),
        shard_rows=16,
        chunk_rows=16,
        classes=tuple(f"v/{i}" for i in global_ids),
        global_ids=tuple(global_ids),
        fingerprint_parts={"teacher": name},
    )
    store = create_soft_labels(folder / f"{name}.zarr", schema)
    for view in range(2):
        ids, gaps = store.empty_shard()
        for row in rows:
            order = np.roll(np.arange(len(global_ids)), row + view)[:k]
            ids[row], gaps[row] = encode(
                schema,
                order[None].astype(np.int64),
                np.linspace(1, 0, k, dtype=np.float32)[None],
                np.full((1, 1), 2.0, np.float32),
            )
        store.write_shard(view, 0, ids, gaps)
    return store


def routes_of(*tables):
    """Columns of routes from lists of classes."""
    routes = np.zeros((CLASSES + 1, len(tables)), bool)
    for column, classes in enumerate(tables):
        routes[list(classes), column] = True
    return routes


def test_each_row_gets_the_label_of_its_teacher_and_view(tmp_path):
    """Under own routing T is 1, ids are global, and short stores are padded with -1."""
    first = make_store(tmp_path, "a", [0, 1, 2], [0, 1, 2, 3], k=3)
    second = make_store(tmp_path, "b", [3, 4, 5], [4, 5, 6, 7, 9], k=2)
    signals = StoredSignals(LABELS, stores=[first, second], routes=routes_of((0, 1, 2), (3, 4, 5)))
    assert signals.provides == {"labels", "soft"}
    rows, views = np.array([9, 0, 3, 4]), np.array([0, 1, 0, 1])
    targets = signals.fetch(rows, views)
    assert targets.labels.tolist() == [5, 0, 2, 3]
    soft = targets.soft
    assert soft.ids.shape == (1, 4, 3)
    assert soft.teacher.tolist() == [[1, 0, 0, 1]]
    for position, (row, view) in enumerate(zip(rows, views, strict=True)):
        store, ids = (second, [3, 4, 5]) if LABELS[row] > 2 else (first, [0, 1, 2])
        k = store.schema.k
        expected = np.roll(ids, row + view)[:k].tolist() + [-1] * (3 - k)
        assert soft.ids[0, position].tolist() == expected
        alone = store.read(np.array([row]), int(view))
        assert torch.equal(soft.log_probs[0, position, :k], alone.log_probs[0, 0])
    assert torch.isneginf(soft.log_probs[0, 0, 2:]).all()


def test_teachers_that_share_rows_take_a_slot_each(tmp_path):
    """With two teachers on a row T is 2, and rows of one teacher leave the other slot empty."""
    everything = make_store(tmp_path, "all", range(CLASSES), range(len(LABELS)), k=2)
    own = make_store(tmp_path, "own", [0, 1, 2], [0, 1, 2, 3], k=2)
    routes = routes_of((0, 1, 2), range(CLASSES + 1))
    soft = (
        StoredSignals(LABELS, stores=[own, everything], routes=routes)
        .fetch(np.array([0, 9, 8]), np.array([0, 0, 0]))
        .soft
    )
    assert soft.teacher.tolist() == [[0, 1, 1], [1, -1, -1]]
    assert soft.ids[1, 1].tolist() == [-1, -1]


def test_missing_label_is_refused(tmp_path):
    """A routed row without a label raises instead of giving fill values."""
    store = make_store(tmp_path, "a", [0, 1, 2], [0, 1], k=2)
    signals = StoredSignals(LABELS, stores=[store], routes=routes_of((0, 1, 2)))
    with pytest.raises(MissingLabelError, match=r"rows \[2\], views \[0\]"):
        signals.fetch(np.array([0, 2]), np.array([0, 0]))


def test_hard_labels_of_mixed_images_come_with_partner_and_weight():
    """Where the recipe mixes, the control gets both labels and the weight."""

    def mix_weights(rows, views):
        return rows[::-1].copy(), np.full(len(rows), 0.25, np.float32)

    targets = StoredSignals(LABELS, mix_weights=mix_weights).fetch(
        np.array([0, 4]), np.array([0, 0])
    )
    assert targets.soft is None
    assert targets.partner_labels.tolist() == [3, 0]
    assert targets.mix_weight.tolist() == [0.25, 0.25]


def test_unlabelled_images_provide_no_hard_labels():
    """A set without human labels says so, so that an objective that needs them is refused."""
    signals = StoredSignals(np.full(5, -1, np.int32))
    assert signals.provides == frozenset()
    assert signals.fetch(np.array([0]), np.array([0])).labels is None


def test_a_copy_for_another_process_holds_its_own_labels(tmp_path, monkeypatch):
    """Signals that were read here, e.g. to fit a basis, still keep labels in memory in a worker."""
    rows = np.flatnonzero(LABELS == 3)
    stores = [make_store(tmp_path, "a", [3, 4], rows, 2)]
    signals = StoredSignals(LABELS, stores=stores, routes=routes_of([3]), held_rows=rows)
    before = signals.fetch(rows, np.zeros_like(rows))
    held = []
    monkeypatch.setattr(
        type(stores[0]), "hold", lambda self, rows, views, temperature: held.append(rows)
    )
    signals.fetch(rows, np.zeros_like(rows))
    assert not held
    after = pickle.loads(pickle.dumps(signals)).fetch(rows, np.zeros_like(rows))
    assert len(held) == 1
    assert torch.equal(before.soft.ids, after.soft.ids)
    assert torch.equal(before.rows, torch.from_numpy(rows))


def two_teachers(folder, held):
    """Signals of two teachers that share some rows, one with fewer ranks."""
    everything = make_store(folder, "all", range(CLASSES), range(len(LABELS)), k=3)
    own = make_store(folder, "own", [0, 1, 2], [0, 1, 2, 3], k=2)
    routes = routes_of((0, 1, 2), range(CLASSES + 1))
    rows = np.arange(len(LABELS)) if held else None
    return StoredSignals(LABELS, stores=[own, everything], routes=routes, held_rows=rows)


def tensors(targets):
    """All tensors of some targets."""
    soft = targets.soft
    return targets.rows, targets.labels, soft.ids, soft.log_probs, soft.log_tail, soft.teacher


@pytest.mark.parametrize("held", [False, True])
def test_a_stream_gives_what_batches_give_one_by_one(tmp_path, monkeypatch, held):
    """Same order and bits, whatever is fetched at once, and every tensor in one piece."""
    signals = two_teachers(tmp_path, held)
    monkeypatch.setattr("pipeline.objectives.stored_signals.ROWS_AT_ONCE", 8)
    order = BatchOrder(rows=np.arange(len(LABELS)), batch_size=3, views=2, seed=0)
    batches = [batch for epoch in range(4) for batch in order.batches(epoch)]
    streamed = list(signals.stream(batches))
    assert len(streamed) == len(batches) == 12
    for targets, (rows, views) in zip(streamed, batches, strict=True):
        alone = signals.fetch(rows, views)
        for one, other in zip(tensors(targets), tensors(alone), strict=True):
            assert torch.equal(one, other)
            assert one.is_contiguous()


def test_an_error_of_a_stream_comes_in_its_turn(tmp_path, monkeypatch):
    """Batches before a missing label are delivered; closing a stream ends its threads."""
    monkeypatch.setattr("pipeline.objectives.stored_signals.ROWS_AT_ONCE", 1)
    store = make_store(tmp_path, "a", [0, 1, 2], [0, 1], k=2)
    signals = StoredSignals(LABELS, stores=[store], routes=routes_of((0, 1, 2)))
    stream = signals.stream([(np.array([row]), np.array([0])) for row in (1, 0, 2, 1)])
    assert [next(stream).rows.item() for _ in range(2)] == [1, 0]
    with pytest.raises(MissingLabelError, match=r"rows \[2\]"):
        next(stream)
    stream = signals.stream([(np.array([1]), np.array([0]))] * 50)
    next(stream)
    stream.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("targets")]


def test_a_loader_joins_images_with_streamed_targets(tmp_path):
    """Each image meets the targets of its own row and view, from any step on."""
    signals = two_teachers(tmp_path, held=True)
    order = BatchOrder(rows=np.arange(len(LABELS)), batch_size=3, views=2, seed=0)

    def images(rows, views):
        return torch.from_numpy(rows + 100 * views)

    loaders = [
        batch_loader(BatchDataset(images, signals.fetch, stream), order, epochs=3, first_step=2)
        for stream in (signals.stream, None)
    ]
    count = 0
    for streamed, fetched in zip(*loaders, strict=True):
        assert torch.equal(streamed.images, streamed.targets.rows + 100 * streamed.views)
        for one, other in zip(tensors(streamed.targets), tensors(fetched.targets), strict=True):
            assert torch.equal(one, other)
        count += 1
    assert count == 7
