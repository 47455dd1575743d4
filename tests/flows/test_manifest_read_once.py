"""A manifest of many rows is read once a process, and never an old one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


def test_a_process_reads_each_state_of_the_manifest_once(
    project_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tasks after the listing share its rows; what another process changes since is seen."""
    from flows import project
    from pipeline.config import load_project
    from pipeline.data import kept_manifest, update_manifest

    config = str(project_folder / "project.yaml")
    read: list[Any] = []
    original = kept_manifest.load_manifest

    def spy(workspace: Path) -> Any:
        read.append(workspace)
        return original(workspace)

    monkeypatch.setattr(kept_manifest, "load_manifest", spy)
    first = project.load(config, [])
    for _ in range(3):
        assert project.reload(config, []).manifest is first.manifest
    assert read == []
    gone = next((project_folder / "IMAGES").rglob("*.png"))
    content = gone.read_bytes()
    gone.unlink()
    update_manifest(load_project(config, []))  # as another process does
    second = project.reload(config, []).manifest
    assert second.retired.sum() == first.manifest.retired.sum() + 1
    assert project.reload(config, []).manifest is second
    gone.write_bytes(content)
    update_manifest(load_project(config, []))
    assert project.reload(config, []).manifest.retired.sum() == first.manifest.retired.sum()
    assert len(read) == 2
