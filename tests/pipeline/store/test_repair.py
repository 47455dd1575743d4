"""Damaged metadata is made again; labels survive it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.store import open_soft_labels, verify_store
from pipeline.store.coverage import missing_labels
from pipeline.store.layout import shard_file
from pipeline.store.repair import repair_metadata
from storage_schemas.errors import CorruptLabelError, SchemaMismatchError
from storage_schemas.label_space import canonical_digest

DOCUMENTS = ("", "ids", "gaps", "commits")


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:100])


@pytest.mark.parametrize("name", DOCUMENTS)
@pytest.mark.parametrize("harm", [cut, Path.unlink])
def test_a_lost_document_costs_no_label(full_store, name, harm):
    """A cut or deleted document is made again from the others; every shard stays."""
    commits = full_store.commits
    harm(full_store.path / name / "zarr.json")
    with pytest.raises(CorruptLabelError):
        open_soft_labels(full_store.path)
    problems = repair_metadata(full_store.path, full_store.schema)
    assert len(problems) == 1
    assert verify_store(full_store, "full") == []
    assert np.array_equal(open_soft_labels(full_store.path).commits, commits)
    assert repair_metadata(full_store.path, full_store.schema) == []


def test_the_layout_is_the_stores_own(full_store, cases):
    """A project that grew since has other default shards; those of the store come back."""
    later = cases.schema_of(num_rows=5000, shard_rows=1024, chunk_rows=1024)
    (full_store.path / "zarr.json").unlink()
    repair_metadata(full_store.path, later, grown_at=(130, 300, 5000))
    schema = open_soft_labels(full_store.path, expected=later).schema
    assert (schema.num_rows, schema.shard_rows, schema.chunk_rows) == (300, 128, 32)
    assert schema.grown_at == (130,)
    assert verify_store(full_store, "full") == []


def test_only_a_damaged_shard_is_taken_out_of_use(full_store):
    """Where data are damaged too, exactly their shard is to be labelled again."""
    cut(full_store.path / "zarr.json")
    file = shard_file(full_store.path, "ids", 1, 2)
    file.write_bytes(file.read_bytes()[:-1])
    repair_metadata(full_store.path, full_store.schema)
    store = open_soft_labels(full_store.path)
    assert missing_labels(store, np.arange(300), np.zeros(0, np.int64)) == [(1, 2)]


def test_another_spelling_is_written_anew(full_store):
    """A flipped blank is reported, harms no reading, and goes with the next writer."""
    file = full_store.path / "ids" / "zarr.json"
    sound = file.read_bytes()
    file.write_bytes(sound.replace(b"\n  ", b"\n\t ", 1))
    assert "array ids: altered in its spelling" in verify_store(full_store)[0]
    full_store.read(np.arange(300), 0)
    repair_metadata(full_store.path, full_store.schema)
    assert file.read_bytes() == sound


def test_labels_of_another_store_do_not_come_back(full_store, cases):
    """A document made for other weights makes no shard of these valid."""
    (full_store.path / "zarr.json").unlink()
    other = cases.schema_of(fingerprint_parts={"weights": "other"})
    repair_metadata(full_store.path, other)
    assert open_soft_labels(full_store.path).commits.sum() == 0


def test_what_cannot_be_known_is_refused(full_store):
    """Without group and array documents nothing is guessed."""
    for name in DOCUMENTS:
        cut(full_store.path / name / "zarr.json")
    with pytest.raises(CorruptLabelError, match="beyond repair; delete the store"):
        repair_metadata(full_store.path, full_store.schema)


def test_a_sound_document_of_another_version_is_left_alone(full_store):
    """What a newer release has signed is refused, not repaired."""
    file = full_store.path / "zarr.json"
    document = json.loads(file.read_bytes())
    document["attributes"]["soft_labels"]["version"] = 2
    signed = {name: document["attributes"][name] for name in ("soft_labels", "arrays")}
    document["attributes"]["digest"] = canonical_digest(signed)
    file.write_text(json.dumps(document, indent=2))
    before = file.read_bytes()
    with pytest.raises(SchemaMismatchError, match="newer release"):
        repair_metadata(full_store.path, full_store.schema)
    assert file.read_bytes() == before
