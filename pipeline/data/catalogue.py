"""The kinds of source a project file can name, and how each is opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline.config import DataConfig
from pipeline.data.glyphs import open_glyphs
from pipeline.data.image_folder import open_image_folder
from pipeline.data.long_tail import LongTailedSource
from pipeline.data.python_data import open_python_data
from pipeline.data.source import Source
from pipeline.data.torchvision_data import open_torchvision

SOURCES: Mapping[str, Callable[[Any, Path], Source]] = {
    "glyphs": open_glyphs,
    "image_folder": lambda config, workspace: open_image_folder(config),
    "torchvision": lambda config, workspace: open_torchvision(config),
    "python": lambda config, workspace: open_python_data(config),
}
"""`data.source` -> function of (its settings, workspace)."""


def open_source(config: DataConfig, workspace: Path) -> Source:
    """Open the source that a project names.

    Args:
        config: The project's `data`.
        workspace: Where a source may keep a cache (glyphs do).

    Raises:
        DataError: If it cannot be opened as asked.
    """
    source = SOURCES[config.source](config, workspace)
    if config.imbalance is None:
        return source
    return LongTailedSource(source=source, imbalance=config.imbalance)
