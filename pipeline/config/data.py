"""Where images come from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from pipeline.config.base import Fraction, Settings


class GlyphData(Settings):
    """The built-in data set: code points rendered from fonts (DESIGN section 8)."""

    source: Literal["glyphs"]
    verticals: tuple[str, ...] | None = None
    fonts: tuple[str, ...] = Field((), description="extra font files, as globs")
    min_faces: int = Field(6, ge=2, description="faces that must hold a code point")
    size: int = Field(32, ge=8, le=512, description="pixels per side")
    test_faces: tuple[str, ...] = Field(
        ("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
        description="faces held out for testing, by file stem",
    )
    hierarchy: bool = Field(
        False, description="add what a glyph is: its script, and its letter in all its forms"
    )


class ImageFolderData(Settings):
    """A folder of class folders, or of vertical/class folders."""

    source: Literal["image_folder"]
    root: Path
    vertical_depth: Literal[0, 1] = Field(0, description="1: vertical/class/image folders")
    test_root: Path | None = Field(None, description="same layout; else a share of root is held")
    test_fraction: Fraction = 0.1
    verticals: Mapping[str, tuple[str, ...]] | None = Field(
        None, description="vertical -> class names, where the folders do not say"
    )
    parents: Path | None = Field(None, description="YAML file: class -> its is-a parent or parents")


class TorchvisionData(Settings):
    """A classification data set of torchvision that is already on disk; nothing is downloaded."""

    source: Literal["torchvision"]
    dataset: str
    root: Path
    args: dict[str, Any] = Field(default_factory=dict)
    test_fraction: Fraction = Field(0.1, description="used when the data set has no test split")
    verticals: Mapping[str, tuple[str, ...]] | None = None


class PythonData(Settings):
    """A callable `module:function` that returns a `pipeline.data.Source`."""

    source: Literal["python"]
    callable: str
    args: dict[str, Any] = Field(default_factory=dict)
    verticals: Mapping[str, tuple[str, ...]] | None = None


DataConfig = Annotated[
    GlyphData | ImageFolderData | TorchvisionData | PythonData, Field(discriminator="source")
]
