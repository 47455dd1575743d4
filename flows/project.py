"""What every flow begins with: the project, its manifest, its label space."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from prefect.runtime import flow_run

from flows.progress import bar
from pipeline.config import Project, load_project
from pipeline.data import load_label_space, load_manifest, update_manifest
from pipeline.data.manifest_files import read_index
from storage_schemas.label_space import LabelSpace, canonical_digest
from storage_schemas.manifest import Manifest

# Stages that begin together take turns at listing the images, which may be many.
LISTING_SECONDS = 3600.0


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A project file, read, with its rows and classes."""

    project: Project
    manifest: Manifest
    space: LabelSpace
    quarantined: int = 0


def load(config: str, overrides: list[str]) -> Loaded:
    """Read the project file and bring the manifest up to date.

    The images are listed by the outermost flow only; a subflow reads the manifest that its
    parent has just written.

    Raises:
        ConfigError: If the project file is wrong; lists every problem.
        DataError: If the images cannot be read as asked.
    """
    if flow_run.parent_flow_run_id is not None:
        return reload(config, overrides)
    project = load_project(config, overrides)
    with bar("images listed") as line:
        update = update_manifest(
            project,
            progress=lambda done, total: line.set(done, total),
            wait_seconds=LISTING_SECONDS,
        )
    manifest = update.manifest
    retired = np.flatnonzero(manifest.retired).tolist()
    _keep(_state(project.workspace, manifest.digest, retired), manifest)
    return Loaded(
        project=project,
        manifest=manifest,
        space=update.label_space,
        quarantined=update.quarantined,
    )


def reload(config: str, overrides: list[str]) -> Loaded:
    """Read the project file and the manifest as it is, for a task of a flow that called `load`.

    A process reads each state of the manifest once, however many tasks it runs.

    Raises:
        ConfigError: If the project file is wrong; lists every problem.
        ManifestError: If there is no sound manifest.
    """
    project = load_project(config, overrides)
    index = read_index(project.workspace)
    state = _state(project.workspace, index["appends"][-1]["chain"], index["retired"])
    manifest = _kept.get(state)
    if manifest is None:
        manifest = load_manifest(project.workspace)
        _keep(state, manifest)
    space = load_label_space(project.workspace)
    return Loaded(project=project, manifest=manifest, space=space)


State = tuple[str, str, str]

# The manifest that this process read last; at ten million rows each reading takes half a minute.
_kept: dict[State, Manifest] = {}


def _keep(state: State, manifest: Manifest) -> None:
    _kept.clear()
    _kept[state] = manifest


def _state(workspace: Path, chain: str, retired: list[int]) -> State:
    """Return what names the rows of a manifest, and which of them are in use."""
    return str(workspace), chain, canonical_digest(retired)
