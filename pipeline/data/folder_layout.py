"""What a folder of images holds: verticals, classes, a train/test split, a look at some images.

In: recognising the layouts that people have, through the same `ImageFolderSource` that reads them
later. Left out: the project file that is written from it (pipeline.starting).

Recognised: class/image, vertical/class/image, and either below `train` and `test` or `val`.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.image_folder import ImageFolderSource
from pipeline.data.source import Sample
from storage_schemas.errors import DataError, UnreadableImageError
from storage_schemas.manifest import TEST

_TRAIN_FOLDERS = ("train", "training")
_TEST_FOLDERS = ("test", "testing", "val", "valid", "validation")
_LOOKED_AT = 64


@dataclass(frozen=True, kw_only=True)
class FolderLayout:
    """Where the classes lie.

    Attributes:
        root: Folder of class folders, or of vertical/class folders.
        vertical_depth: 1 where the first folder level names the vertical.
        test_root: Folder of held-out images in the same layout, where there is one.
        unused: Split folders beside the two that are used.
    """

    root: Path
    vertical_depth: int
    test_root: Path | None = None
    unused: tuple[str, ...] = ()

    def source(self) -> ImageFolderSource:
        """Return the source that reads this layout."""
        return ImageFolderSource(
            root=self.root, vertical_depth=self.vertical_depth, test_root=self.test_root
        )


@dataclass(frozen=True, kw_only=True)
class FolderContents:
    """What lies there.

    Attributes:
        classes: Vertical -> class name -> training images.
        test_images: Held-out images, of whatever class.
        unlabelled: Files outside the class folders.
        untrained: Qualified classes that have test images only.
        side: Median of the shorter sides of the images looked at, in pixels; 0 if none decoded.
        looked_at: How many were.
        unreadable: One sentence per image of those that does not decode.
    """

    classes: Mapping[str, Mapping[str, int]]
    test_images: int
    unlabelled: int
    untrained: tuple[str, ...]
    side: int
    looked_at: int
    unreadable: tuple[str, ...]

    @property
    def images_by_vertical(self) -> dict[str, int]:
        """Training images of each vertical."""
        return {vertical: sum(found.values()) for vertical, found in self.classes.items()}

    @property
    def train_images(self) -> int:
        """Training images of all classes."""
        return sum(self.images_by_vertical.values())


def detect_layout(images: Path) -> FolderLayout:
    """Recognise the layout of a folder.

    Raises:
        DataError: If it is no folder or has no class folder with images.
    """
    if not images.is_dir():
        raise DataError(f"--images must be a folder of class folders, got {images}")
    folders = _folders(images)
    if not folders:
        raise DataError(
            f"{images} must hold class folders (or vertical/class folders) with images, got none; "
            "put each class's images into a folder of its own"
        )
    top = {folder[0]: folder[0].casefold() for folder in sorted(folders)}
    trains = [name for name, folded in top.items() if folded in _TRAIN_FOLDERS]
    is_split = len(trains) == 1 and set(top.values()) <= {*_TRAIN_FOLDERS, *_TEST_FOLDERS}
    if not is_split or (trains[0],) in folders:
        return FolderLayout(root=images, vertical_depth=_vertical_depth(folders))
    below: dict[str, dict[tuple[str, ...], int]] = {name: {} for name in top}
    for folder, count in folders.items():
        if len(folder) > 1:
            below[folder[0]][folder[1:]] = count
    known = {folder[0] for folder in below[trains[0]]}
    tests = [
        name
        for name in sorted(set(top) - set(trains), key=lambda n: _TEST_FOLDERS.index(top[n]))
        if known & {folder[0] for folder in below[name]}
    ]
    return FolderLayout(
        root=images / trains[0],
        vertical_depth=_vertical_depth(below[trains[0]]),
        test_root=images / tests[0] if tests else None,
        unused=tuple(sorted(set(top) - {trains[0], *tests[:1]})),
    )


def _folders(root: Path) -> Counter[tuple[str, ...]]:
    """Count the images that lie directly in each folder, the root itself excepted."""
    keys = (sample.key for sample in ImageFolderSource(root=root).samples())
    return Counter(tuple(folder) for key in keys if (folder := key.split("/")[:-1]))


def _vertical_depth(folders: Mapping[tuple[str, ...], int]) -> int:
    """Return 1 where most images lie two levels down, in folders of different names."""
    inner = {folder[1] for folder in folders if len(folder) > 1}
    deep = sum(count for folder, count in folders.items() if len(folder) > 1)
    # class/images/*.jpg: a folder that all classes have is no class.
    return 1 if 2 * deep > sum(folders.values()) and len(inner) > 1 else 0


def look_into(layout: FolderLayout) -> FolderContents:
    """Count a layout's images, and decode a sample of them."""
    source = layout.source()
    samples = list(source.samples())
    train: Counter[str] = Counter()
    test: Counter[str] = Counter()
    for sample in samples:
        if sample.class_name is not None:
            (test if sample.split == TEST else train)[sample.class_name] += 1
    classes: dict[str, dict[str, int]] = {}
    for name in sorted(train | test):
        vertical, _, local = name.partition("/")
        classes.setdefault(vertical, {})[local] = train[name]
    side, looked_at, unreadable = _look_at(source, samples)
    return FolderContents(
        classes=classes,
        test_images=test.total(),
        unlabelled=sum(sample.class_name is None for sample in samples),
        untrained=tuple(sorted(test.keys() - train.keys())),
        side=side,
        looked_at=looked_at,
        unreadable=unreadable,
    )


def _look_at(
    source: ImageFolderSource, samples: Sequence[Sample]
) -> tuple[int, int, tuple[str, ...]]:
    step = max(1, -(-len(samples) // _LOOKED_AT))
    sides, problems = [], []
    for sample in samples[::step]:
        try:
            sides.append(min(source.load(sample.key).size))
        except UnreadableImageError as error:
            problems.append(str(error))
    side = int(statistics.median(sides)) if sides else 0
    return side, len(sides) + len(problems), tuple(problems)
