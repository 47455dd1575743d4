"""Fingerprints name content, not its spelling."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from storage_schemas import fingerprint as fingerprint_module
from storage_schemas.fingerprint import file_digest, fingerprint, known_file_digest


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


def test_a_file_is_read_once_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights are hashed once a process; another content is seen, its old times set back or not."""
    file = tmp_path / "weights"
    file.write_bytes(b"first")
    stamp = file.stat()
    first, second = (hashlib.sha256(content).hexdigest() for content in (b"first", b"other"))
    assert known_file_digest(file) == first
    # As if the file were old: one that was written just now is read every time.
    monkeypatch.setattr(fingerprint_module, "SETTLED_SECONDS", 0.0)
    read: list[Path] = []

    def counted(path: Path) -> str:
        read.append(path)
        return file_digest(path)

    monkeypatch.setattr(fingerprint_module, "file_digest", counted)
    assert [known_file_digest(file) for _ in range(3)] == [first] * 3
    assert len(read) == 1
    time.sleep(0.05)
    file.write_bytes(b"other")
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert file.stat().st_size == stamp.st_size
    assert [known_file_digest(file) for _ in range(3)] == [second] * 3
    assert len(read) == 2
