"""What every flow begins with: the project, its manifest, its label space."""

from __future__ import annotations

from dataclasses import dataclass

from prefect.runtime import flow_run

from flows.progress import bar
from pipeline.config import Project, load_project
from pipeline.data import load_label_space, update_manifest
from pipeline.data.kept_manifest import current_manifest, keep_manifest
from storage_schemas.label_space import LabelSpace
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
    keep_manifest(project.workspace, update.manifest)
    return Loaded(
        project=project,
        manifest=update.manifest,
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
    return Loaded(
        project=project,
        manifest=current_manifest(project.workspace),
        space=load_label_space(project.workspace),
    )
