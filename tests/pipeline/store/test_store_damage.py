"""Damage of every kind is found by verification and never read as a label."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.locations import is_local, remove
from pipeline.store import SoftLabelStore, create_soft_labels, open_soft_labels, verify_store
from pipeline.store.coverage import missing_labels
from pipeline.store.layout import shard_file
from storage_schemas.errors import (
    ConcentrateError,
    CorruptLabelError,
    MissingLabelError,
    SchemaMismatchError,
)
from storage_schemas.label_space import canonical_digest

on_both = pytest.mark.parametrize("location", ["local", "s3"], indirect=True)


def flip(file: Path, bit: int) -> None:
    data = bytearray(file.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    file.write_bytes(data)


def read_all(path: Path) -> None:
    store = open_soft_labels(path)
    for view in range(2):
        store.read(np.arange(300), view)


@on_both
def test_a_sound_store_has_no_problems(full_store: SoftLabelStore) -> None:
    """Both depths are silent on a whole store, a partial one, and leftovers of a kill."""
    partial = shard_file(full_store.path, "ids", 0, 0).with_name("0.abc.partial")
    partial.write_bytes(b"torn")
    assert verify_store(full_store, "quick") == []
    assert verify_store(full_store, "full") == []
    full_store.grow(1000)
    assert verify_store(full_store, "full") == []


@on_both
@pytest.mark.parametrize("name", ["ids", "gaps", "commits"])
def test_any_flipped_bit_of_data_is_found(full_store: SoftLabelStore, name: str) -> None:
    """Whatever bit of a shard or record flips, full verification and reading find it."""
    file = shard_file(full_store.path, name, 1, 1)
    sound = file.read_bytes()
    count = 16 if is_local(file) else 2
    bits = np.random.default_rng(0).choice(8 * len(sound), count, replace=False)
    for bit in bits:
        flip(file, int(bit))
        problems = verify_store(full_store, "full")
        assert len(problems) == 1
        assert "view 1, shard 1" in problems[0]
        with pytest.raises(CorruptLabelError, match=r"store\.zarr.*view 1, shard 1"):
            open_soft_labels(full_store.path).read(np.array([130]), 1)
        file.write_bytes(sound)
    assert verify_store(full_store, "full") == []


@on_both
@pytest.mark.parametrize("name", ["", "ids", "gaps", "commits"])
def test_any_flipped_bit_of_metadata_is_found(full_store: SoftLabelStore, name: str) -> None:
    """Whatever bit of a metadata document flips, it is found, and opened only if harmless."""
    file = (full_store.path / name if name else full_store.path) / "zarr.json"
    sound = file.read_bytes()
    count = 30 if is_local(file) else 3
    for bit in np.random.default_rng(1).choice(8 * len(sound), count, replace=False):
        flip(file, int(bit))
        assert len(verify_store(full_store)) == 1
        try:
            read_all(full_store.path)  # another spelling of the same, or room for more rows
        except (CorruptLabelError, SchemaMismatchError):
            continue
        finally:
            file.write_bytes(sound)
    assert verify_store(full_store, "full") == []


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _empty(file: Path) -> None:
    file.write_bytes(b"")


@on_both
@pytest.mark.parametrize("name", ["ids", "gaps", "commits"])
@pytest.mark.parametrize("harm", [_truncate, _empty, remove])
def test_torn_and_lost_files_are_found(
    full_store: SoftLabelStore, name: str, harm: Callable[[Path], None], cases: Any
) -> None:
    """A truncated, empty or deleted file is found, is never read, and can be written again."""
    harm(shard_file(full_store.path, name, 0, 2))
    problems = verify_store(full_store, "full")
    assert problems
    assert all("view 0, shard 2" in problem for problem in problems)
    assert verify_store(full_store, "quick") == problems
    with pytest.raises((CorruptLabelError, MissingLabelError)):
        open_soft_labels(full_store.path).read(np.array([260]), 0)
    full_store.read(np.arange(256), 0)
    full_store.discard_shard(0, 2)
    assert missing_labels(full_store, np.arange(300), np.zeros(0, np.int64)) == [(0, 2)]
    full_store.write_shard(0, 2, *cases.shard_labels(full_store, 0, 2))
    assert verify_store(full_store, "full") == []
    read_all(full_store.path)


@pytest.mark.parametrize("names", [("ids",), ("gaps",), ("ids", "gaps", "commits")])
@on_both
def test_swapped_shards_are_found(full_store: SoftLabelStore, names: tuple[str, ...]) -> None:
    """Shards that changed places are found, even when their commit records moved along."""
    for name in names:
        one, two = (shard_file(full_store.path, name, 0, shard) for shard in (0, 1))
        first = one.read_bytes()
        one.write_bytes(two.read_bytes())
        two.write_bytes(first)
    assert len(verify_store(full_store, "full")) == 2
    for row in (0, 200):
        with pytest.raises(CorruptLabelError):
            open_soft_labels(full_store.path).read(np.array([row]), 0)


@on_both
def test_shards_of_another_store_are_found(
    full_store: SoftLabelStore, location: Path, cases: Any
) -> None:
    """A shard copied with its record from a store of other weights is not read."""
    other = create_soft_labels(
        location / "b", cases.schema_of(fingerprint_parts={"weights": "new"})
    )
    cases.fill_store(other)
    for name in ("ids", "gaps", "commits"):
        foreign = shard_file(other.path, name, 1, 0).read_bytes()
        shard_file(full_store.path, name, 1, 0).write_bytes(foreign)
    assert len(verify_store(full_store, "full")) == 1
    with pytest.raises(CorruptLabelError):
        full_store.read(np.array([0]), 1)


@on_both
def test_a_lost_record_among_many_counts_as_not_done(full_store: SoftLabelStore) -> None:
    """An unreadable commit record hides only its own shard, which is labelled again."""
    _truncate(shard_file(full_store.path, "commits", 1, 0))
    assert missing_labels(full_store, np.arange(300), np.zeros(0, np.int64)) == [(1, 0)]


def test_records_that_disagree_with_sound_bytes_are_found(full_store: SoftLabelStore) -> None:
    """Full verification counts labels and checks ids, beyond the checksums."""
    record = full_store.commits[0, 0].copy()
    record[0] = 7
    full_store._files._array("commits")[0, 0] = record
    assert verify_store(full_store, "quick") == []
    assert verify_store(full_store, "full") == [
        f"{full_store.path}: array commits, view 0, shard 0: 7 labels by its record, got 128"
    ]


def _rewrite(store: SoftLabelStore, change: Callable[[dict[str, object]], object]) -> None:
    """Change the schema of a store as a foreign writer would, with a fitting digest."""
    file = store.path / "zarr.json"
    document = json.loads(file.read_bytes())
    change(document["attributes"]["soft_labels"])
    signed = {name: document["attributes"][name] for name in ("soft_labels", "arrays")}
    document["attributes"]["digest"] = canonical_digest(signed)
    file.write_text(json.dumps(document))


@on_both
def test_a_newer_store_is_refused_with_every_field(full_store: SoftLabelStore) -> None:
    """A store of a later version is named as such, with all that is not understood."""
    _rewrite(full_store, lambda said: said.update(version=9, codebook=1, curve="x"))
    with pytest.raises(SchemaMismatchError, match="newer release") as caught:
        open_soft_labels(full_store.path)
    assert len(caught.value.problems) == 3


def test_arrays_that_do_not_fit_the_schema_are_refused(full_store: SoftLabelStore) -> None:
    """A schema that does not describe the arrays beside it is refused, array by array."""
    _rewrite(full_store, lambda said: said.update(k=3, num_rows=400))
    with pytest.raises(SchemaMismatchError) as caught:
        open_soft_labels(full_store.path)
    text = str(caught.value)
    for part in ("ids shards", "ids.shape", "gaps shards", "gaps.shape", "commits.shape"):
        assert part in text


def test_another_zarr_group_is_refused(tmp_path: Path) -> None:
    """A Zarr group that is no soft-label store is named as such."""
    (tmp_path / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group"}')
    with pytest.raises(SchemaMismatchError, match="not a soft-label store"):
        open_soft_labels(tmp_path)


def test_random_damage_never_gives_a_label(full_store: SoftLabelStore) -> None:
    """Any byte run overwritten anywhere: reads raise or give exactly the written labels."""
    truth = [full_store.read(np.arange(300), view) for view in range(2)]
    rng = np.random.default_rng(3)
    files = sorted(file for file in full_store.path.rglob("*") if file.is_file())
    for _ in range(30):
        file = files[rng.integers(len(files))]
        sound = file.read_bytes()
        at, size = int(rng.integers(len(sound))), int(rng.integers(1, 30))
        file.write_bytes(sound[:at] + rng.bytes(size) + sound[at + size :])
        try:
            store = open_soft_labels(full_store.path)
            for view in range(2):
                found = store.read(np.arange(300), view)
                assert np.array_equal(found.ids, truth[view].ids)
                assert np.array_equal(found.log_probs, truth[view].log_probs)
        except ConcentrateError:
            pass
        file.write_bytes(sound)
