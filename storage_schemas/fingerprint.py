"""Digests that name a store: of its declared parts, and of files.

In: the fingerprint of a set of named parts and the digest of one file. Left out: which parts a
store has (the caller decides) and digests of tensors (pipeline.models).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from storage_schemas.label_space import canonical_digest

FINGERPRINT_DIGITS = 16


def fingerprint(parts: Mapping[str, Any]) -> str:
    """Return the first 16 hex digits of the sha256 of the parts' canonical JSON.

    Args:
        parts: JSON values by name. Tuples and lists are the same; the order of names is free.
    """
    return canonical_digest(dict(parts))[:FINGERPRINT_DIGITS]


def file_digest(path: Path) -> str:
    """Return the sha256 hex digest of a file's bytes.

    Raises:
        OSError: If the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
