"""The manifest that this process read last, so that its tasks do not each read it again.

In: keeping one manifest, and telling whether it is still the one on the disk. Left out: reading
(manifest_files.py). A row takes three microseconds to read: at ten million rows half a minute a
task.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.data.manifest_files import load_manifest, read_index
from storage_schemas.label_space import canonical_digest
from storage_schemas.manifest import Manifest

State = tuple[str, str, str]
"""Workspace, chain, and which rows are retired: all that a manifest is."""

_kept: dict[State, Manifest] = {}


def keep_manifest(workspace: Path, manifest: Manifest) -> None:
    """Keep a manifest that was just written, in place of the one before."""
    retired = np.flatnonzero(manifest.retired).tolist()
    _keep(_state(workspace, manifest.digest, retired), manifest)


def current_manifest(workspace: Path) -> Manifest:
    """Return the manifest on the disk, read anew only if it is another than the kept one.

    Raises:
        ManifestError: If there is no sound manifest.
    """
    index = read_index(workspace)
    state = _state(workspace, index["appends"][-1]["chain"], index["retired"])
    manifest = _kept.get(state)
    if manifest is None:
        manifest = load_manifest(workspace)
        _keep(state, manifest)
    return manifest


def _keep(state: State, manifest: Manifest) -> None:
    _kept.clear()
    _kept[state] = manifest


def _state(workspace: Path, chain: str, retired: list[int]) -> State:
    return str(workspace), chain, canonical_digest(retired)
