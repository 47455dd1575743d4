"""Images in class folders, or in vertical/class folders.

In: the walk, the class and split of each file, and refusal of what is linked in from outside.
Left out: decoding, and any cache; a folder is listed anew each time.

Hidden files and folders, and files without the suffix of an image, are skipped. Files that lie
directly in the root are unlabelled. Whatever else cannot be used is listed as a sample that does
not load, so that the manifest builder puts it into quarantine with its path.
"""

from __future__ import annotations

import functools
import hashlib
import os
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from pipeline.config import ImageFolderData
from pipeline.data.decoding import MAX_FILE_BYTES, SUFFIXES, decode_image
from pipeline.data.hierarchy import read_parents
from pipeline.data.source import (
    Parents,
    Sample,
    Source,
    clean_name,
    qualified_names,
    split_of,
)
from storage_schemas.errors import DataError, UnreadableImageError
from storage_schemas.manifest import TEST, TRAIN

TEST_PREFIX = "test:"
"""Starts the keys of files under `test_root`; other keys are paths relative to `root`."""


@dataclass(frozen=True, kw_only=True)
class ImageFolderSource(Source):
    """See the module docstring.

    Attributes:
        root: Folder of class folders (`vertical_depth` 0) or of vertical/class folders (1).
        vertical_depth: How many folder levels name a vertical.
        test_root: Held-out images in the same layout; None holds out a share of `root`.
        test_fraction: That share.
        verticals: Vertical -> class names, for depth 0.
        parents_file: Names the is-a parents of classes; None: no class has any.
    """

    root: Path
    vertical_depth: int = 0
    test_root: Path | None = None
    test_fraction: float = 0.1
    verticals: Mapping[str, tuple[str, ...]] | None = None
    parents_file: Path | None = None

    def samples(self) -> Iterable[Sample]:
        """List every image file, sorted by path."""
        parts = list(_walk(self.root))
        if self.test_root is not None:
            parts += [f"{TEST_PREFIX}{path}" for path in _walk(self.test_root)]
        folders = {key: self._class_folders(key) for key in parts}
        names = self._names({folders_[-1] for folders_ in folders.values() if folders_})
        for key, folder in folders.items():
            if self.test_root is None:
                split = split_of(key, self.test_fraction) if _encodable(key) else TRAIN
            else:
                split = TEST if key.startswith(TEST_PREFIX) else TRAIN
            name = None
            if len(folder) == 2:
                name = f"{clean_name(folder[0])}/{clean_name(folder[1])}"
            elif folder:
                name = names[folder[0]]
            yield Sample(key=key, class_name=name, split=split)

    def load(self, key: str) -> Image.Image:
        """Read and decode one file."""
        path = self._path(key)
        return decode_image(self._read(key), str(path))

    def content_digest(self, key: str) -> bytes:
        """blake2b-128 of the file's bytes."""
        return hashlib.blake2b(self._read(key), digest_size=16).digest()

    def parents(self, classes: Collection[str], labelled: Collection[str]) -> Parents:
        """Return what the parents file says."""
        if self.parents_file is None:
            return {}
        return read_parents(self.parents_file, classes, labelled)

    def stamp(self, key: str) -> tuple[int, int] | None:
        """Size and modification time of the file."""
        try:
            status = self._path(key).stat()
        except OSError:
            return None
        return status.st_size, status.st_mtime_ns

    def _names(self, classes: set[str]) -> dict[str, str]:
        if self.vertical_depth:
            return {}
        return qualified_names(sorted(classes), self.verticals, owner=str(self.root))

    def _class_folders(self, key: str) -> list[str]:
        """Return [class] or [vertical, class]; [] when the file is unlabelled or misplaced."""
        folders = key.removeprefix(TEST_PREFIX if self.test_root else "").split("/")[:-1]
        wanted = self.vertical_depth + 1
        return folders[:wanted] if len(folders) >= wanted else []

    def _base(self, key: str) -> tuple[Path, str]:
        if self.test_root is not None and key.startswith(TEST_PREFIX):
            return self.test_root, key.removeprefix(TEST_PREFIX)
        return self.root, key

    @functools.cached_property
    def _resolved_roots(self) -> dict[Path, Path]:
        return {base: base.resolve() for base in (self.root, self.test_root) if base is not None}

    def _path(self, key: str) -> Path:
        base, relative = self._base(key)
        return base / relative

    def _read(self, key: str) -> bytes:
        base, relative = self._base(key)
        path = base / relative
        if not _encodable(key):
            raise UnreadableImageError(f"{path!a}: the file name is not UTF-8; rename it")
        if self.vertical_depth and relative.count("/") == 1:
            raise UnreadableImageError(
                f"{path}: lies in a vertical's folder; with vertical_depth: 1 an image must lie "
                "in vertical/class/"
            )
        try:
            if not path.resolve(strict=True).is_relative_to(self._resolved_roots[base]):
                raise UnreadableImageError(f"{path}: a link that leaves {base}; copy the file")
            status = path.stat()
            if stat.S_ISDIR(status.st_mode):
                raise UnreadableImageError(f"{path}: linked folders are not followed")
            if not stat.S_ISREG(status.st_mode):  # a pipe could keep the reader for ever
                raise UnreadableImageError(f"{path}: is not a regular file")
            if status.st_size > MAX_FILE_BYTES:
                raise UnreadableImageError(
                    f"{path}: an image file must have at most {MAX_FILE_BYTES} bytes, "
                    f"got {status.st_size}"
                )
            return path.read_bytes()
        except OSError as error:
            raise UnreadableImageError(f"{path}: {error.strerror or error}") from error


def open_image_folder(config: ImageFolderData) -> ImageFolderSource:
    """Open the folder of a project.

    Raises:
        DataError: If a root is missing, one root holds the other, or verticals are named twice.
    """
    for root in filter(None, (config.root, config.test_root)):
        if not root.is_dir():
            raise DataError(f"data.root and data.test_root must be folders, got {root}")
    if config.test_root is not None:
        first, second = config.root.resolve(), config.test_root.resolve()
        if first.is_relative_to(second) or second.is_relative_to(first):
            raise DataError(
                f"data.root and data.test_root must lie apart, got {first} and {second}"
            )
    if config.vertical_depth and config.verticals is not None:
        raise DataError(
            "data.verticals is for flat folders: with vertical_depth: 1 the folders name the "
            "verticals; remove one of the two"
        )
    return ImageFolderSource(
        root=config.root,
        vertical_depth=config.vertical_depth,
        test_root=config.test_root,
        test_fraction=config.test_fraction,
        verticals=config.verticals,
        parents_file=config.parents,
    )


def _walk(root: Path) -> Iterator[str]:
    """Yield "/"-separated paths of image files and linked folders below the root, sorted."""
    for folder, subfolders, files in os.walk(root):
        relative = Path(folder).relative_to(root)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        linked = [name for name in subfolders if (Path(folder) / name).is_symlink()]
        images = [name for name in files if os.path.splitext(name)[1].lower() in SUFFIXES]
        for name in sorted(linked + images):
            if not name.startswith("."):
                yield (relative / name).as_posix()


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
