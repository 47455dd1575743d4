"""A long-tailed part of a source: who stays, and that the rest is left alone."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import pytest
from PIL import Image

from pipeline.config.data import GlyphData, Imbalance
from pipeline.data.catalogue import open_source
from pipeline.data.long_tail import LongTailedSource
from pipeline.data.source import Sample, Source
from storage_schemas.manifest import TEST, TRAIN


@dataclass(frozen=True)
class Even(Source):
    """Eleven classes of fifty training and five test samples, and ten without a class."""

    def samples(self) -> Iterable[Sample]:
        """Keys name class and number."""
        for c in range(11):
            for i in range(55):
                split = TRAIN if i < 50 else TEST
                yield Sample(key=f"{c}/{i}", class_name=f"all/{c}", split=split)
        for i in range(10):
            yield Sample(key=f"none/{i}", class_name=None, split=TRAIN)

    def load(self, key: str) -> Image.Image:
        """A blank."""
        return Image.new("L", (4, 4))

    def content_digest(self, key: str) -> bytes:
        """The key's."""
        return key.encode().ljust(16)[:16]

    def stamp(self, key: str) -> tuple[int, int] | None:
        """None."""
        return None


def kept(factor: float, seed: int = 0) -> list[Sample]:
    """What stays of it."""
    return list(
        LongTailedSource(source=Even(), imbalance=Imbalance(factor=factor, seed=seed)).samples()
    )


@pytest.mark.parametrize("factor", [0.01, 0.1, 1.0])
def test_training_classes_fall_exponentially(factor: float) -> None:
    """Class sizes are those of the formula, at least one; all else stays."""
    samples = kept(factor)
    counts = Counter(s.class_name for s in samples if s.split == TRAIN)
    assert counts.pop(None) == 10
    expected = [max(1, round(50 * factor ** (place / 10))) for place in range(11)]
    assert sorted(counts.values(), reverse=True) == expected
    assert sum(s.split == TEST for s in samples) == 55


def test_what_stays_is_a_function_of_the_seed() -> None:
    """The same seed keeps the same; another has other classes in its tail; steeper keeps less."""
    assert kept(0.1) == kept(0.1)
    assert set(kept(0.1)) != set(kept(0.1, seed=1))
    assert set(kept(0.01)) < set(kept(0.1)) < set(kept(1.0))


def test_it_wraps_any_source(tmp_path) -> None:
    """`data.imbalance` cuts training glyphs, leaves the rendered cache alone, and pickles."""
    settings = {"source": "glyphs", "verticals": ["lao"]}
    whole = open_source(GlyphData.model_validate(settings), tmp_path)
    tailed = GlyphData.model_validate(settings | {"imbalance": {"factor": 0.1}})
    part = pickle.loads(pickle.dumps(open_source(tailed, tmp_path)))
    assert [path.name for path in (tmp_path / "data").iterdir()] == [whole.folder.name]
    few, many = set(part.samples()), set(whole.samples())
    assert few < many
    assert all(sample.split == TRAIN for sample in many - few)
    key = next(iter(few)).key
    assert part.load(key).tobytes() == whole.load(key).tobytes()
    assert part.content_digest(key) == whole.content_digest(key)
    assert part.stamp(key) == whole.stamp(key)
