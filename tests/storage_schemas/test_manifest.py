from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage_schemas.errors import ManifestError
from storage_schemas.manifest import TEST, TRAIN, Manifest, chain_digest


def appended(manifest: Manifest, keys: list[str], first_label: int = 0) -> Manifest:
    count = len(keys)
    digests = np.frombuffer(b"".join(key.encode().ljust(16)[:16] for key in keys), np.uint8)
    return manifest.appended(
        keys=keys,
        labels=np.arange(first_label, first_label + count, dtype=np.int32) % 5,
        splits=np.array([TEST if position % 4 == 3 else TRAIN for position in range(count)]),
        digests=digests.reshape(count, 16),
    )


@pytest.fixture
def manifest() -> Manifest:
    first = appended(Manifest.empty(), [f"a{position}" for position in range(8)])
    return appended(first, ["b0", "b1", "b2"], first_label=4)


def test_empty_manifest_has_no_rows_and_no_digest() -> None:
    """Before the first append there is nothing, and the chain is the empty string."""
    empty = Manifest.empty()
    assert len(empty) == 0
    assert empty.digest == ""
    assert empty.has_prefix("", 0)
    assert empty.rows().tolist() == []


def test_appends_are_numbered_and_chained(manifest: Manifest) -> None:
    """Each append has its number, its end and a digest of its own."""
    assert manifest.append_ends == (8, 11)
    assert manifest.appends.tolist() == [0] * 8 + [1] * 3
    assert len(set(manifest.chains)) == 2
    assert manifest.digest == manifest.chains[-1]
    assert manifest.chain_problem() is None


def test_nothing_to_append_changes_nothing(manifest: Manifest) -> None:
    """An empty append makes no link in the chain."""
    assert appended(manifest, []) is manifest


def test_prefix_is_recognised_and_others_are_not(manifest: Manifest) -> None:
    """A manifest begins with the rows after each of its appends, and with no others."""
    assert manifest.has_prefix(manifest.chains[0], 8)
    assert manifest.has_prefix(manifest.digest, 11)
    assert not manifest.has_prefix(manifest.chains[0], 11)
    assert not manifest.has_prefix(manifest.digest, 8)
    other = appended(Manifest.empty(), ["x"])
    assert not manifest.has_prefix(other.digest, 1)


def test_retiring_keeps_rows_and_chain(manifest: Manifest) -> None:
    """A retired row keeps its id and is listed no more; the chain stays."""
    retired = manifest.with_retired([1, 9])
    assert len(retired) == len(manifest)
    assert retired.digest == manifest.digest
    assert retired.chain_problem() is None
    assert set(manifest.rows()) - set(retired.rows()) == {1, 9}


def test_rows_by_split_and_support(manifest: Manifest) -> None:
    """Rows are ascending, of the split asked for, and labelled inside the support."""
    assert manifest.rows(TEST).tolist() == [3, 7]
    assert manifest.rows().dtype == np.int64
    found = manifest.rows(TRAIN, np.array([0, 4]))
    expected = [
        row
        for row in range(len(manifest))
        if manifest.splits[row] == TRAIN and manifest.labels[row] in (0, 4)
    ]
    assert found.tolist() == expected


def test_unlabelled_rows_are_in_no_support() -> None:
    """-1 is no class, even when a support should name it."""
    manifest = Manifest.empty().appended(
        keys=["u"],
        labels=np.array([-1], np.int32),
        splits=np.array([TRAIN], np.uint8),
        digests=np.zeros((1, 16), np.uint8),
    )
    assert manifest.rows(TRAIN).tolist() == [0]
    assert manifest.rows(TRAIN, np.array([-1, 0])).tolist() == []


@pytest.mark.parametrize("field", ["keys", "labels", "splits", "digests"])
def test_every_altered_column_breaks_the_chain(manifest: Manifest, field: str) -> None:
    """A change of one value in any column of any append is found, and the append is named."""
    for row, append in ((2, 0), (10, 1)):
        column = getattr(manifest, field).copy()
        column[row] = "other" if field == "keys" else column[row] ^ 1
        problem = replace(manifest, **{field: column}).chain_problem()
        assert problem is not None
        assert f"append {append}" in problem


def test_swapped_rows_break_the_chain(manifest: Manifest) -> None:
    """Two whole rows that trade places are found."""
    order = np.arange(len(manifest))
    order[[0, 1]] = [1, 0]
    columns = {n: getattr(manifest, n)[order] for n in ("keys", "labels", "splits", "digests")}
    assert replace(manifest, **columns).chain_problem() is not None


@pytest.mark.parametrize("key", ["", "a\0b", "a0"])
def test_bad_keys_are_refused(manifest: Manifest, key: str) -> None:
    """Empty keys, NUL and a key that is alive already are refused."""
    with pytest.raises(ManifestError, match="unique"):
        appended(manifest, [key])


def test_key_of_a_retired_row_may_return(manifest: Manifest) -> None:
    """A changed sample has its key twice: the old row retired, the new one alive."""
    again = appended(manifest.with_retired([0]), ["a0"])
    assert again.alive_by_key["a0"] == 11


def test_arrays_that_do_not_fit_are_refused(manifest: Manifest) -> None:
    """Columns of different lengths, and ends that do not match, are errors."""
    with pytest.raises(ManifestError, match="labels must be"):
        replace(manifest, labels=manifest.labels[:-1])
    with pytest.raises(ManifestError, match="append_ends"):
        replace(manifest, append_ends=(8, 10))


def test_rows_digest_follows_rows_labels_and_contents(manifest: Manifest) -> None:
    """Other rows, another label or other content: another digest; retiring changes nothing."""
    rows = np.array([1, 4], np.int64)
    digest = manifest.rows_digest(rows)
    assert manifest.with_retired([4]).rows_digest(rows) == digest
    changed = manifest.digests.copy()
    changed[4, 0] ^= 1
    others = {
        manifest.rows_digest(np.array([1, 5], np.int64)),
        replace(manifest, labels=manifest.labels + np.int32(1)).rows_digest(rows),
        replace(manifest, digests=changed).rows_digest(rows),
    }
    assert len(others | {digest}) == 4


def test_chain_digest_is_pinned() -> None:
    """The chain of a fixed append never changes: stores on disk depend on it."""
    found = chain_digest(
        "",
        np.array(["cats/1.jpg", "dögs/2.jpg"], np.object_),
        np.array([0, -1], np.int32),
        np.array([0, 1], np.uint8),
        np.arange(32, dtype=np.uint8).reshape(2, 16),
    )
    assert found == "3ecef29c313ddac205c14e31648c8a872e408a6e9f441a64ad5e3f1eda64e2c3"


@given(st.lists(st.lists(st.integers(0, 10_000), unique=True, max_size=6), max_size=5))
def test_growth_keeps_every_earlier_prefix(appends: list[list[int]]) -> None:
    """Whatever is appended, each earlier manifest stays a prefix, and no row moves."""
    manifest = Manifest.empty()
    earlier: list[Manifest] = []
    for names in appends:
        keys = [str(name) for name in names if str(name) not in manifest.alive_by_key]
        manifest = appended(manifest, keys)
        for old in earlier:
            assert manifest.has_prefix(old.digest, len(old))
            assert manifest.keys[: len(old)].tolist() == old.keys.tolist()
        earlier.append(manifest)
    assert manifest.chain_problem() is None
