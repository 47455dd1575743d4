"""`Source`: where images come from, as the manifest builder and the view reader see it.

In: the abstract `Source`, `Sample`, the stable train/test split, and how bare class names become
`vertical/name`. Left out: any particular source (one file each) and decoding.
"""

from __future__ import annotations

import abc
import hashlib
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from storage_schemas.errors import DataError
from storage_schemas.manifest import TEST, TRAIN

DEFAULT_VERTICAL = "all"
Parents = Mapping[str, tuple[str, ...]]
"""Qualified class name -> qualified names of its direct is-a parents."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One sample as the source lists it.

    Attributes:
        key: What the source calls it; unique, and the same on every run.
        class_name: Qualified `vertical/name`, or None when unlabelled.
        split: `TRAIN` or `TEST`.
    """

    key: str
    class_name: str | None
    split: int


class Source(abc.ABC):
    """A data set. Must be picklable: loader workers get a copy.

    `load` and `content_digest` are called from several threads.
    """

    @abc.abstractmethod
    def samples(self) -> Iterable[Sample]:
        """List every sample, readable or not, in any order."""

    @abc.abstractmethod
    def load(self, key: str) -> Image.Image:
        """Return the decoded image, mode "L" or "RGB".

        Raises:
            UnreadableImageError: With the path or key, if it does not decode.
        """

    @abc.abstractmethod
    def content_digest(self, key: str) -> bytes:
        """Return 16 bytes (blake2b) that change when the content does.

        Raises:
            UnreadableImageError: If the content cannot be read.
        """

    def parents(self, classes: Collection[str], labelled: Collection[str]) -> Parents:
        """Return the is-a parents of classes; may name inner classes, which no image has.

        Args:
            classes: Qualified names of all classes, now or earlier.
            labelled: Those of them that have images now.

        Raises:
            DataError: If what the user says of them does not fit.
        """
        return {}

    @abc.abstractmethod
    def stamp(self, key: str) -> tuple[int, int] | None:
        """Return two numbers (size, mtime_ns) that change when the content does.

        A sample whose stamp is unchanged is not read again. None: there is no cheap stamp.
        """


def split_of(key: str, test_fraction: float) -> int:
    """Return `TEST` for a stable share of all keys; a key keeps its split for ever."""
    draw = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")
    return TEST if draw < test_fraction * 2**64 else TRAIN


def clean_name(name: str) -> str:
    """Return a folder or class name as the label space accepts it.

    NFC, because file systems differ in how they compose accents; "_" for what cannot be printed.
    """
    composed = unicodedata.normalize("NFC", name)
    return "".join(c if c.isprintable() else "_" for c in composed).strip() or "_"


def qualified_names(
    classes: Sequence[str], verticals: Mapping[str, Sequence[str]] | None, *, owner: str
) -> dict[str, str]:
    """Return class name -> `vertical/name`.

    Args:
        classes: Bare class names.
        verticals: Vertical -> class names; None puts all classes in the vertical "all".
        owner: Starts the error message.

    Raises:
        DataError: If a class is in no vertical or in two, or a vertical's name holds "/".
    """
    if verticals is None:
        return {name: f"{DEFAULT_VERTICAL}/{clean_name(name)}" for name in classes}
    home: dict[str, str] = {}
    for vertical, members in verticals.items():
        if "/" in vertical:
            raise DataError(f"{owner}: a vertical's name must not hold '/', got {vertical!r}")
        for member in members:
            if home.setdefault(clean_name(member), vertical) != vertical:
                raise DataError(
                    f"{owner}: class {member!r} must be in one vertical, got "
                    f"{home[clean_name(member)]!r} and {vertical!r}"
                )
    missing = sorted({name for name in classes if clean_name(name) not in home})
    if missing:
        raise DataError(
            f"{owner}: data.verticals must place every class, got none for {missing[:10]}"
            f"{' and more' if len(missing) > 10 else ''}; add them to a vertical"
        )
    return {name: f"{clean_name(home[clean_name(name)])}/{clean_name(name)}" for name in classes}
