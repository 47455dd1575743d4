"""Where images come from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from pipeline.config.base import Fraction, Settings


class Imbalance(Settings):
    """A long tail made of the training rows: class sizes fall exponentially (Cui et al. 2019)."""

    factor: float = Field(gt=0, le=1, description="share of its images that the last class keeps")
    seed: int = Field(0, ge=0, description="which classes come last, and which images stay")


class DataSettings(Settings):
    """What every source can be told."""

    imbalance: Imbalance | None = Field(
        None, description="train on a long tail of the classes; test rows stay as they are"
    )


class GlyphData(DataSettings):
    """The built-in data set: code points rendered from fonts (DESIGN section 8)."""

    source: Literal["glyphs"]
    verticals: tuple[str, ...] | None = None
    fonts: tuple[str, ...] = Field((), description="extra font files, as globs")
    min_faces: int = Field(6, ge=2, description="faces that must hold a code point")
    size: int = Field(32, ge=8, le=512, description="pixels per side")
    merge_cases: bool = Field(
        False, description="a class is a letter, in upper and lower case, not a code point"
    )
    test_faces: tuple[str, ...] = Field(
        ("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
        description="faces held out for testing, by file stem",
    )
    hierarchy: bool = Field(
        False, description="add what a glyph is: its script, and its letter in all its forms"
    )


class ImageFolderData(DataSettings):
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


class TorchvisionData(DataSettings):
    """A classification data set of torchvision that is already on disk; nothing is downloaded."""

    source: Literal["torchvision"]
    dataset: str
    root: Path
    args: dict[str, Any] = Field(default_factory=dict)
    test_fraction: Fraction = Field(0.1, description="used when the data set has no test split")
    verticals: Mapping[str, tuple[str, ...]] | None = None


class PythonData(DataSettings):
    """A callable `module:function` that returns a `pipeline.data.Source`."""

    source: Literal["python"]
    callable: str
    args: dict[str, Any] = Field(default_factory=dict)
    verticals: Mapping[str, tuple[str, ...]] | None = None


DataConfig = Annotated[
    GlyphData | ImageFolderData | TorchvisionData | PythonData, Field(discriminator="source")
]


class LabelNoise(Settings):
    """Wrong labels on purpose, to learn what a method makes of them."""

    share: Fraction = Field(description="of the labelled training images that get a wrong class")
    among: Literal["all", "vertical"] = Field(
        "all", description="drawn evenly from all other classes, or from those of the vertical"
    )
    seed: int = Field(0, ge=0, lt=2**32)
