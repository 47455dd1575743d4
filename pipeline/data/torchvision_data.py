"""A classification data set of torchvision that is already on disk.

In: building any class of `torchvision.datasets` by name, its train and test parts by its own
`train` or `split` argument, its targets and class names. Left out: downloads, transforms,
detection and segmentation sets.

torchvision is imported on first use only, so that listing a project stays light.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.config import TorchvisionData
from pipeline.data.decoding import image_digest, to_gray_or_rgb
from pipeline.data.source import Sample, Source, qualified_names, split_of
from storage_schemas.errors import DataError, UnreadableImageError
from storage_schemas.manifest import TEST, TRAIN

SPLIT_NAMES: Mapping[str, tuple[str, str]] = {
    "FGVCAircraft": ("trainval", "test"),
    "ImageNet": ("train", "val"),
    "Imagenette": ("train", "val"),
    "OxfordIIITPet": ("trainval", "test"),
    "Places365": ("train-standard", "val"),
}
"""Values of `split` for training and testing where they are not "train" and "test"."""

TARGET_ATTRIBUTES = ("targets", "labels", "_labels", "y")
SAMPLE_ATTRIBUTES = ("samples", "_samples", "imgs")


@dataclass(frozen=True, kw_only=True)
class TorchvisionSource(Source):
    """See the module docstring. Keys are "train/000123" and "test/000123".

    Attributes:
        dataset: Name of the class in `torchvision.datasets`.
        root: Where the data lie.
        args: Further arguments; a `train` or `split` given here pins the one part that is read.
        test_fraction: Share held out when there is no test part.
        verticals: Vertical -> class names; None puts all in "all".
    """

    dataset: str
    root: Path
    args: Mapping[str, Any] = field(default_factory=dict)
    test_fraction: float = 0.1
    verticals: Mapping[str, tuple[str, ...]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the loaded data behind: a loader worker opens them anew."""
        return {item.name: self.__dict__[item.name] for item in fields(self)}

    @functools.cached_property
    def _parts(self) -> dict[str, Any]:
        import torchvision  # the only source that needs it

        constructor: Any = getattr(torchvision.datasets, self.dataset, None)
        is_class = inspect.isclass(constructor)
        if not is_class:
            raise DataError(
                f"data.dataset must be a class of torchvision.datasets, got {self.dataset!r}"
            )
        parameters = inspect.signature(constructor).parameters
        common = dict(self.args) | ({"download": False} if "download" in parameters else {})
        parts: dict[str, dict[str, Any]] = {"train": {}}
        if "train" in parameters:
            if "train" not in self.args:
                parts = {"train": {"train": True}, "test": {"train": False}}
        elif "split" in parameters and "split" not in self.args:
            train, test = SPLIT_NAMES.get(self.dataset, ("train", "test"))
            parts = {"train": {"split": train}, "test": {"split": test}}
        try:
            return {
                name: constructor(self.root, **common, **chosen) for name, chosen in parts.items()
            }
        except Exception as error:  # each data set fails in its own way
            raise DataError(
                f"torchvision.datasets.{self.dataset} cannot be opened under {self.root}: "
                f"{error}. Nothing is downloaded: put the data there, or set data.args "
                f"(parameters: {', '.join(parameters)})"
            ) from error

    @functools.cached_property
    def _stamp(self) -> tuple[int, int]:
        digest = hashlib.blake2b(digest_size=16)
        for folder, subfolders, files in os.walk(self.root):
            subfolders.sort()
            for name in sorted(files):
                path = os.path.join(folder, name)
                status = os.stat(path, follow_symlinks=False)
                digest.update(f"{path!a} {status.st_size} {status.st_mtime_ns}\n".encode())
        value = int.from_bytes(digest.digest(), "big")
        return value >> 65, value & (2**63 - 1)

    def samples(self) -> Iterable[Sample]:
        """List the parts in order, with each part's targets as the data set gives them."""
        listed = {name: _class_names(part, self.dataset) for name, part in self._parts.items()}
        bare = sorted({name for names in listed.values() for name in names})
        qualified = qualified_names(bare, self.verticals, owner=self.dataset)
        for part, names in listed.items():
            for position, name in enumerate(names):
                key = f"{part}/{position:06d}"
                split = TEST if part == "test" else TRAIN
                if len(listed) == 1:
                    split = split_of(key, self.test_fraction)
                yield Sample(key=key, class_name=qualified[name], split=split)

    def load(self, key: str) -> Image.Image:
        """Return one image as the data set gives it."""
        part, _, position = key.partition("/")
        try:
            image = self._parts[part][int(position)][0]
        except DataError:
            raise
        except Exception as error:  # damaged data raise a dozen unrelated types
            raise UnreadableImageError(f"{self.dataset} {key}: {error}") from error
        if not isinstance(image, Image.Image):
            raise DataError(
                f"torchvision.datasets.{self.dataset} must give PIL images, got "
                f"{type(image).__name__}; it is not an image classification set, or data.args "
                "sets a transform or loader"
            )
        return to_gray_or_rgb(image)

    def content_digest(self, key: str) -> bytes:
        """blake2b-128 of the pixels."""
        return image_digest(self.load(key))

    def stamp(self, key: str) -> tuple[int, int] | None:
        """Names, sizes and times of all files below the root: one stamp for all samples."""
        return self._stamp


def open_torchvision(config: TorchvisionData) -> TorchvisionSource:
    """Open the data set of a project.

    Raises:
        DataError: If the root is missing.
    """
    if not config.root.is_dir():
        raise DataError(f"data.root must be a folder, got {config.root}")
    return TorchvisionSource(
        dataset=config.dataset,
        root=config.root,
        args=config.args,
        test_fraction=config.test_fraction,
        verticals=config.verticals,
    )


def _targets(part: Any) -> list[Any]:
    """Return one target per sample, without decoding where the data set allows it."""
    for name in TARGET_ATTRIBUTES:
        found = getattr(part, name, None)
        if found is not None and len(found) == len(part):
            return list(np.asarray(found).tolist())
    for name in SAMPLE_ATTRIBUTES:
        found = getattr(part, name, None)
        if isinstance(found, Sequence) and len(found) == len(part) and len(found[0]) == 2:
            return [target for _, target in found]
    return [int(part[position][1]) for position in range(len(part))]


def _class_names(part: Any, dataset: str) -> list[str]:
    """Return each sample's class name; its number where the data set has no names."""
    targets = _targets(part)
    if not all(isinstance(target, int) for target in targets):
        raise DataError(
            f"torchvision.datasets.{dataset} must have one class number a sample, got "
            f"{targets[0]!r}; it is not a classification set"
        )
    classes = getattr(part, "classes", None)
    if classes is None or len(classes) <= max(targets, default=0):
        width = len(str(max(targets, default=0)))
        return [f"{target:0{width}d}" for target in targets]
    # ImageNet lists all synonyms of a class as a tuple; the first is its usual name.
    names = [name if isinstance(name, str) else str(name[0]) for name in classes]
    doubles = {name for name in names if names.count(name) > 1}
    return [
        f"{names[target]} {target}" if names[target] in doubles else names[target]
        for target in targets
    ]
