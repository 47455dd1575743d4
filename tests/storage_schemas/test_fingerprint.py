"""Fingerprints name content, not its spelling."""

from __future__ import annotations

import hashlib
from pathlib import Path

from storage_schemas.fingerprint import file_digest, fingerprint


def test_fingerprint_is_pinned() -> None:
    """The name of a store never changes for the same parts."""
    expected = hashlib.sha256(b'{"k":16,"weights":"ab"}').hexdigest()[:16]
    assert fingerprint({"weights": "ab", "k": 16}) == expected


def test_fingerprint_ignores_order_and_sees_every_value() -> None:
    """The order of parts is free; any value counts, nested ones too."""
    first = fingerprint({"a": {"x": [1, 2]}, "b": None})
    assert fingerprint({"b": None, "a": {"x": (1, 2)}}) == first
    assert fingerprint({"a": {"x": [1, 3]}, "b": None}) != first


def test_file_digest_is_sha256_of_the_bytes(tmp_path: Path) -> None:
    """A file is known by its bytes."""
    file = tmp_path / "weights"
    file.write_bytes(b"abc" * 100_000)
    assert file_digest(file) == hashlib.sha256(b"abc" * 100_000).hexdigest()
