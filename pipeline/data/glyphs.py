"""The built-in data set: Unicode characters rendered from fonts (DESIGN section 8).

In: building the images once into a cache of two files, and reading them back memory-mapped.
Left out: fonts and pixels (glyph_rendering.py), classes (glyph_classes.py).

Whole faces are the test split. Many faces draw a symbol alike, so an image equal to one of its
class that is there already is dropped, training faces first: no test image was trained on. An
image that two classes share is dropped from both: no image has two labels.
"""

from __future__ import annotations

import functools
import io
import json
import os
import shutil
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import fontTools
import numpy as np
import numpy.typing as npt
from PIL import Image, features

from pipeline.config import GlyphData
from pipeline.data.decoding import image_digest
from pipeline.data.glyph_classes import class_name, common_codepoints, merged_classes
from pipeline.data.glyph_rendering import (
    RENDERING_VERSION,
    face_codepoints,
    font_files,
    render_face,
)
from pipeline.data.hierarchy import glyph_parents
from pipeline.data.source import Parents, Sample, Source
from pipeline.durable_files import not_written, write_durably
from pipeline.locations import local_folder
from storage_schemas.errors import DataError, UnreadableImageError
from storage_schemas.fingerprint import file_digest
from storage_schemas.label_space import canonical_digest
from storage_schemas.manifest import TEST, TRAIN

MIN_TRAINING_IMAGES = 2


@dataclass(frozen=True, kw_only=True)
class GlyphSource(Source):
    """Glyph images in a cache folder. Keys are like "greek/U+03B1/DejaVuSans-Bold".

    Attributes:
        folder: Holds images.npy (N, size, size) uint8 and samples.json; named by its content.
        hierarchy: Whether scripts and letters are classes too, above the glyphs.
    """

    folder: Path
    hierarchy: bool = False

    def __getstate__(self) -> dict[str, Any]:
        """Leave the mapped file behind: a loader worker maps it anew."""
        return {item.name: self.__dict__[item.name] for item in fields(self)}

    @functools.cached_property
    def _listed(self) -> list[tuple[str, str, int]]:
        listed = json.loads((self.folder / "samples.json").read_text(encoding="utf-8"))
        return [(key, name, split) for key, name, split in listed]

    @functools.cached_property
    def _position(self) -> dict[str, int]:
        return {key: position for position, (key, _, _) in enumerate(self._listed)}

    @functools.cached_property
    def _images(self) -> npt.NDArray[np.uint8]:
        mapped = np.load(self.folder / "images.npy", mmap_mode="r", allow_pickle=False)
        return np.asarray(mapped)  # still mapped; a plain array is faster to index

    def samples(self) -> Iterable[Sample]:
        """List all images, by key."""
        return (Sample(key=key, class_name=name, split=split) for key, name, split in self._listed)

    def load(self, key: str) -> Image.Image:
        """Return one image, mode "L", white on black."""
        position = self._position.get(key)
        if position is None:
            raise UnreadableImageError(f"{key}: no such glyph in {self.folder}")
        pixels = self._images[position]
        return Image.frombytes("L", pixels.shape, pixels.tobytes())

    def content_digest(self, key: str) -> bytes:
        """blake2b-128 of the pixels."""
        return image_digest(self.load(key))

    def parents(self, classes: Collection[str], labelled: Collection[str]) -> Parents:
        """Return the letter and the script of each glyph, where they are asked for."""
        return glyph_parents(classes) if self.hierarchy else {}

    def stamp(self, key: str) -> tuple[int, int] | None:
        """The folder's name says what is in it, so it stamps all samples."""
        value = int(self.folder.name.rpartition("-")[2], 16)
        return value >> 32, value & (2**32 - 1)


def open_glyphs(config: GlyphData, workspace: Path) -> GlyphSource:
    """Return the glyphs of a project, rendered on the first call.

    The cache is `<workspace>/data/glyphs-<digest>`, on a local disk in any case; the digest covers
    the settings, the font files, and the versions that decide pixels and names.

    Raises:
        DataError: If fonts, verticals or test faces are not to be had.
    """
    files = font_files(config.fonts)
    stems = [path.stem for path in files]
    unknown = sorted(set(config.test_faces) - set(stems))
    if unknown or not set(stems) - set(config.test_faces):
        raise DataError(
            f"data.test_faces must be some, not all, of {stems}, got {list(config.test_faces)}"
        )
    digest = canonical_digest(
        {
            "version": RENDERING_VERSION,
            "config": config.model_dump(
                mode="json",
                exclude={"fonts", "hierarchy", "imbalance"}
                | (set() if config.merge_cases else {"merge_cases"}),
            ),
            "fonts": {path.stem: file_digest(path) for path in files},
            "freetype": features.version("freetype2"),
            "unicode": unicodedata.unidata_version,
            "scripts": fontTools.version,
        }
    )
    folder = local_folder(workspace) / "data" / f"glyphs-{digest[:16]}"
    if not folder.is_dir():
        images, listed = glyph_samples(config, files)
        _write_cache(folder, images, listed)
    return GlyphSource(folder=folder, hierarchy=config.hierarchy)


def glyph_samples(
    config: GlyphData, files: Sequence[Path]
) -> tuple[npt.NDArray[np.uint8], list[tuple[str, str, int]]]:
    """Render the data set.

    Args:
        config: Settings.
        files: Font files, the reference face first.

    Returns:
        Images (N, size, size) uint8, and per image its key, qualified class name and split,
        sorted by key.

    Raises:
        DataError: If a vertical is unknown or nothing is left.
    """
    held = {path: face_codepoints(path) for path in files}
    found = common_codepoints(held.values(), config.min_faces)
    wanted = config.verticals if config.verticals is not None else tuple(found)
    unknown = sorted(set(wanted) - set(found))
    if unknown:
        sizes = {vertical: len(codepoints) for vertical, codepoints in sorted(found.items())}
        raise DataError(f"data.verticals must be some of {sizes}, got {unknown}")
    codepoints = sorted(c for vertical in wanted for c in found[vertical])
    faces = {
        path.stem: render_face(path, [c for c in codepoints if c in held[path]], config.size)
        for path in files
    }
    classes = merged_classes(list(faces.values()), merge_cases=config.merge_cases)
    by_split = sorted(faces, key=lambda face: face in config.test_faces)  # stable: training first
    owners: dict[bytes, set[int]] = {}
    first: dict[bytes, tuple[int, str]] = {}
    for face in by_split:
        for codepoint, pixels in faces[face].items():
            owners.setdefault(pixels.tobytes(), set()).add(classes[codepoint])
            first.setdefault(pixels.tobytes(), (codepoint, face))
    kept = [first[pixels] for pixels, named in owners.items() if len(named) == 1]
    training = _training_counts(kept, classes, config.test_faces)
    listed: list[tuple[str, str, int]] = []
    images: list[npt.NDArray[np.uint8]] = []
    for codepoint, face in kept:
        if training.get(classes[codepoint], 0) < MIN_TRAINING_IMAGES:
            continue
        name = class_name(classes[codepoint])
        key = f"{name.partition('/')[0]}/U+{codepoint:04X}/{face}"
        listed.append((key, name, TEST if face in config.test_faces else TRAIN))
        images.append(faces[face][codepoint])
    if not listed:
        raise DataError(
            f"data.min_faces {config.min_faces} and data.verticals leave no class with "
            f"{MIN_TRAINING_IMAGES} different training images; lower min_faces or add fonts"
        )
    order = sorted(range(len(listed)), key=lambda position: listed[position][0])
    return np.stack([images[i] for i in order]), [listed[i] for i in order]


def _training_counts(
    kept: Iterable[tuple[int, str]], classes: Mapping[int, int], test_faces: Sequence[str]
) -> dict[int, int]:
    counts: dict[int, int] = {}
    for codepoint, face in kept:
        if face not in test_faces:
            counts[classes[codepoint]] = counts.get(classes[codepoint], 0) + 1
    return counts


def _write_cache(
    folder: Path, images: npt.NDArray[np.uint8], listed: Sequence[tuple[str, str, int]]
) -> None:
    """Write beside the final place and rename, so that a half-written cache is never read."""
    partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
    pixels = io.BytesIO()
    np.save(pixels, images, allow_pickle=False)
    text = json.dumps(listed, ensure_ascii=True, separators=(",", ":"))
    try:
        write_durably(partial / "images.npy", pixels.getvalue())
        write_durably(partial / "samples.json", text.encode())
        os.replace(partial, folder)
    except OSError as error:
        if not folder.is_dir():  # another process may have been first
            raise not_written(folder, folder.parent, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
