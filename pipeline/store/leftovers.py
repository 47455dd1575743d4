"""What killed writers leave in and beside a store.

In: its removal, by whoever holds the writer lock: then nobody else writes, and every temporary
file is of a dead process. Left out: records and documents outside stores, which are cleared when
they are next written (durable_files.py).
"""

from __future__ import annotations

import shutil
from pathlib import Path

from pipeline.locations import is_local


def remove_leftovers(store: Path) -> None:
    """Remove the temporary files of a store and stores of its name that were never finished.

    Nothing reads them; they only take room. The caller holds the writer lock of the store.

    Args:
        store: Directory of the store, which need not exist.
    """
    if not is_local(store):
        return  # an object is there whole or not at all
    for unfinished in store.parent.glob(f".{store.name}.*.partial"):
        shutil.rmtree(unfinished, ignore_errors=True)
    for partial in store.rglob("*.partial"):
        partial.unlink(missing_ok=True)
