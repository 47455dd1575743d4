"""Which code points of a set of fonts are classes, and what the classes are called.

In: the choice of code points, their verticals, and the merging of look-alikes. Left out: fonts
and pixels (glyph_rendering.py), files (glyphs.py).

A glyph is shown centred and without its neighbours, so signs that differ by position alone
(Braille, box drawing, block elements) are left out.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from fontTools import unicodedata as scripts

BLOCK_VERTICALS: Mapping[str, str | None] = {
    "Arrows": "arrows",
    "Supplemental Arrows-A": "arrows",
    "Supplemental Arrows-B": "arrows",
    "Supplemental Arrows-C": "arrows",
    "Miscellaneous Symbols and Arrows": "arrows",
    "Mathematical Operators": "mathematics",
    "Supplemental Mathematical Operators": "mathematics",
    "Miscellaneous Mathematical Symbols-A": "mathematics",
    "Miscellaneous Mathematical Symbols-B": "mathematics",
    "Letterlike Symbols": "letterlike",
    "Mathematical Alphanumeric Symbols": "letterlike",
    "Geometric Shapes": "shapes",
    "Geometric Shapes Extended": "shapes",
    "Spacing Modifier Letters": "modifiers",
    "Modifier Tone Letters": "modifiers",
    "Superscripts and Subscripts": "modifiers",
    "Box Drawing": None,
    "Block Elements": None,
    "Braille Patterns": None,
    "Specials": None,
}
"""Unicode block -> vertical, for characters of no single script; None leaves the block out."""

CATEGORY_VERTICALS: Mapping[str, str] = {
    "Sm": "mathematics",
    "So": "symbols",
    "Sk": "modifiers",
    "Lm": "modifiers",
    "Sc": "punctuation",
}
"""General category -> vertical, for what BLOCK_VERTICALS does not place."""


def vertical_of(codepoint: int) -> str | None:
    """Return the vertical of a code point, or None when it is no class.

    Letters, symbols and punctuation with a Unicode name count; the vertical is the script, or a
    group of blocks for what several scripts share.
    """
    character = chr(codepoint)
    category = unicodedata.category(character)
    if category[0] not in "LSP" or not unicodedata.name(character, ""):
        return None
    block = scripts.block(character)
    if block in BLOCK_VERTICALS and BLOCK_VERTICALS[block] is None:
        return None
    script = str(scripts.script_name(scripts.script(character)))
    if script not in ("Common", "Inherited"):
        return script.lower()
    return BLOCK_VERTICALS.get(block) or CATEGORY_VERTICALS.get(category, "punctuation")


def class_name(codepoint: int) -> str:
    """Return the qualified class name, e.g. "greek/GREEK SMALL LETTER ALPHA"."""
    return f"{vertical_of(codepoint)}/{unicodedata.name(chr(codepoint))}"


def common_codepoints(faces: Iterable[Iterable[int]], min_faces: int) -> dict[str, list[int]]:
    """Return vertical -> ascending code points that at least `min_faces` faces hold."""
    held = Counter(codepoint for face in faces for codepoint in face)
    found: dict[str, list[int]] = {}
    for codepoint in sorted(c for c, count in held.items() if count >= min_faces):
        vertical = vertical_of(codepoint)
        if vertical is not None:
            found.setdefault(vertical, []).append(codepoint)
    return found


def merged_classes(
    renderings: Sequence[Mapping[int, npt.NDArray[np.uint8]]], *, merge_cases: bool = False
) -> dict[int, int]:
    """Return code point -> the code point that names its class.

    Code points whose reference renderings are equal are one class, named by the lowest: Latin A,
    Greek Alpha and Cyrillic A look the same. The reference is the first face that holds them.

    Args:
        renderings: Per face, code point -> pixels.
        merge_cases: Upper and lower case of a letter are one class as well.
    """
    reference: dict[int, tuple[int, bytes]] = {}
    for position, face in enumerate(renderings):
        for codepoint, pixels in face.items():
            reference.setdefault(codepoint, (position, pixels.tobytes()))
    names: dict[tuple[int, bytes], int] = {}
    classes = {c: names.setdefault(reference[c], c) for c in sorted(reference)}
    return _with_cases_merged(classes) if merge_cases else classes


def _with_cases_merged(classes: Mapping[int, int]) -> dict[int, int]:
    """Join the classes of both cases of each letter of a vertical, named by the lowest code point.

    Look-alikes are joined already, so where two scripts share a capital they share the letter.
    """
    named_by = {name: name for name in classes.values()}

    def first(name: int) -> int:
        while named_by[name] != name:
            name = named_by[name]
        return name

    for codepoint, name in classes.items():
        lower = chr(codepoint).lower()
        if len(lower) != 1 or vertical_of(ord(lower)) != vertical_of(codepoint):
            continue
        low, high = sorted((first(name), first(classes.get(ord(lower), name))))
        named_by[high] = low
    return {codepoint: first(name) for codepoint, name in classes.items()}
