"""Rendering code points of a font face as small gray images.

In: the fonts that come with matplotlib, a face's code points, and its glyphs as white on black
pixels, centred and never clipped. Left out: the choice of classes (glyph_classes.py).

Basic layout, no hinting to speak of (four times oversampled), so pixels depend on the font file
and the FreeType version only.
"""

from __future__ import annotations

import glob
import importlib.util
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from fontTools.ttLib import TTFont, TTLibError
from PIL import Image, ImageDraw, ImageFont

from storage_schemas.errors import DataError

RENDERING_VERSION = 1
OVERSAMPLING = 4
EM_FRACTION = 0.75
MARGIN = 1
REFERENCE_FACE = "DejaVuSans"
UNASSIGNED = "\uffff"


def font_files(extra: Sequence[str]) -> list[Path]:
    """Return the font files: matplotlib's DejaVu and STIXGeneral text faces, then the extra ones.

    matplotlib is located, not imported. The reference face comes first, the others by name.

    Args:
        extra: Globs of further font files.

    Raises:
        DataError: If matplotlib is missing, a glob finds nothing, or two files share a stem.
    """
    found = importlib.util.find_spec("matplotlib")
    if found is None or not found.submodule_search_locations:
        raise DataError("the glyphs come from matplotlib's fonts: install matplotlib")
    folder = Path(next(iter(found.submodule_search_locations))) / "mpl-data" / "fonts" / "ttf"
    files = [
        path
        for path in folder.glob("*.ttf")
        if path.stem.startswith(("DejaVuSans", "DejaVuSerif", "STIXGeneral"))
        and not path.stem.endswith("Display")
    ]
    if not files:
        raise DataError(f"matplotlib must bring the DejaVu and STIX fonts, got none in {folder}")
    files.sort(key=lambda path: (path.stem != REFERENCE_FACE, path.stem))
    for pattern in extra:
        matches = sorted(Path(name) for name in glob.glob(pattern, recursive=True))
        if not matches:
            raise DataError(f"data.fonts: {pattern!r} finds no file")
        files += [path for path in matches if path not in files]
    stems = [path.stem for path in files]
    doubles = sorted({stem for stem in stems if stems.count(stem) > 1})
    if doubles:
        raise DataError(f"data.fonts: file stems name the faces and must differ, got {doubles}")
    return files


def face_codepoints(path: Path) -> frozenset[int]:
    """Return the code points that a font's character map holds.

    Raises:
        DataError: If the file is no readable font.
    """
    try:
        with path.open("rb") as file, TTFont(file, lazy=True, fontNumber=0) as font:
            cmap = font.getBestCmap() or {}
    except (TTLibError, OSError, ValueError) as error:
        raise DataError(f"data.fonts: {path} is no readable font: {error}") from error
    return frozenset(codepoint for codepoint, glyph in cmap.items() if glyph != ".notdef")


def render_face(
    path: Path, codepoints: Iterable[int], size: int
) -> dict[int, npt.NDArray[np.uint8]]:
    """Render code points of one face.

    Blank glyphs, and glyphs that look like the face's box for missing ones, are left out.

    Args:
        path: Font file.
        codepoints: What to render; the face must hold them.
        size: Pixels per side.

    Returns:
        Code point -> (size, size) uint8, ink white, its box centred, at the same scale for all
        glyphs but those too large for it.

    Raises:
        DataError: If FreeType cannot scale the font.
    """
    side = size * OVERSAMPLING
    limit = (size - 2 * MARGIN) * OVERSAMPLING
    fonts: dict[int, ImageFont.FreeTypeFont] = {}

    def ink(character: str, em: int) -> Image.Image | None:
        if em not in fonts:
            fonts[em] = ImageFont.truetype(path, em, layout_engine=ImageFont.Layout.BASIC)
        left, top, right, bottom = (int(edge) for edge in fonts[em].getbbox(character))
        canvas = Image.new("L", (max(right - left, 0) + 4, max(bottom - top, 0) + 4))
        ImageDraw.Draw(canvas).text((2 - left, 2 - top), character, 255, font=fonts[em])
        box = canvas.getbbox()
        return canvas.crop(box) if box else None

    def centred(character: str) -> npt.NDArray[np.uint8] | None:
        em = int(side * EM_FRACTION)
        glyph = ink(character, em)
        while glyph is not None and max(glyph.size) > limit and em > 1:
            em = max(1, min(em - 1, em * limit // max(glyph.size)))
            glyph = ink(character, em)
        if glyph is None:
            return None
        image = Image.new("L", (side, side))
        image.paste(glyph, ((side - glyph.width) // 2, (side - glyph.height) // 2))
        return np.asarray(image.reduce(OVERSAMPLING))

    try:
        missing = centred(UNASSIGNED)
        rendered = {codepoint: centred(chr(codepoint)) for codepoint in codepoints}
    except OSError as error:
        raise DataError(f"data.fonts: {path} cannot be rendered: {error}") from error
    return {
        codepoint: pixels
        for codepoint, pixels in rendered.items()
        if pixels is not None
        and pixels.any()
        and (missing is None or not np.array_equal(pixels, missing))
    }
