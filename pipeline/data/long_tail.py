"""A long-tailed part of a source: some classes keep all their training samples, others few.

In: which samples stay, as a pure function of (seed, class names, keys). Class sizes fall
exponentially from all to `factor` of a class's own samples, as Cui et al. 2019 (arXiv 1901.05555)
make CIFAR-LT. Left out: test samples and unlabelled ones, which all stay.

The cut is made where samples are listed, so specialists, labels, students and class counts all see
the same long tail.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from PIL import Image

from pipeline.config.data import Imbalance
from pipeline.data.source import Sample, Source
from storage_schemas.manifest import TRAIN


@dataclass(frozen=True, kw_only=True)
class LongTailedSource(Source):
    """Another source without what the long tail leaves out.

    Attributes:
        source: All samples.
        imbalance: How steep the tail is, and its seed.
    """

    source: Source
    imbalance: Imbalance

    def samples(self) -> Iterable[Sample]:
        """List the samples that stay."""
        samples = list(self.source.samples())
        by_class: dict[str, list[str]] = {}
        for sample in samples:
            if sample.split == TRAIN and sample.class_name is not None:
                by_class.setdefault(sample.class_name, []).append(sample.key)
        kept: set[str] = set()
        for place, name in enumerate(sorted(by_class, key=self._draw)):
            share = self.imbalance.factor ** (place / max(len(by_class) - 1, 1))
            keys = sorted(by_class[name], key=self._draw)
            kept.update(keys[: max(1, round(share * len(keys)))])
        for sample in samples:
            if sample.split != TRAIN or sample.class_name is None or sample.key in kept:
                yield sample

    def _draw(self, name: str) -> bytes:
        return hashlib.blake2b(f"{self.imbalance.seed}/{name}".encode(), digest_size=16).digest()

    def load(self, key: str) -> Image.Image:
        """Load from the source beneath."""
        return self.source.load(key)

    def content_digest(self, key: str) -> bytes:
        """Digest of the source beneath."""
        return self.source.content_digest(key)

    def stamp(self, key: str) -> tuple[int, int] | None:
        """Stamp of the source beneath."""
        return self.source.stamp(key)
