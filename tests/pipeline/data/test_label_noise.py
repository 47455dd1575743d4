"""Wrong labels on purpose: how many, which ones, and who sees them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.config import LabelNoise, Project
from pipeline.data import Sample, update_manifest
from pipeline.data.label_noise import with_label_noise
from storage_schemas.manifest import TEST, TRAIN

CLASSES = [f"{vertical}/{name}" for vertical in ("animal", "tool") for name in "abcde"]
SAMPLES = [
    Sample(key=f"{name}/{number}", class_name=name, split=TRAIN)
    for name in CLASSES
    for number in range(400)
]


def noisy(share: float, **settings: object) -> list[str | None]:
    """What the samples are called at a share of noise."""
    return [s.class_name for s in with_label_noise(SAMPLES, LabelNoise(share=share, **settings))]


@pytest.mark.parametrize("share", [0.2, 0.4])
def test_share_of_the_labels_is_wrong(share: float) -> None:
    """The share is met within three standard errors, and every wrong class comes evenly."""
    found = noisy(share)
    wrong = [label for label, s in zip(found, SAMPLES, strict=True) if label != s.class_name]
    error = (share * (1 - share) / len(SAMPLES)) ** 0.5
    assert abs(len(wrong) / len(SAMPLES) - share) < 3 * error
    counts = np.array([wrong.count(name) for name in CLASSES])
    assert (np.abs(counts - len(wrong) / len(CLASSES)) < 4 * counts.mean() ** 0.5).all()


def test_all_or_none() -> None:
    """A share of 0 changes nothing, and one of 1 leaves no label right."""
    names = [sample.class_name for sample in SAMPLES]
    assert noisy(0.0) == names
    assert all(label != name for label, name in zip(noisy(1.0), names, strict=True))


def test_label_depends_on_seed_and_key_alone() -> None:
    """Other samples around it, and their order, do not matter; a larger share hits the same."""
    noise = LabelNoise(share=0.4)
    some = with_label_noise([*reversed(SAMPLES[::7]), *SAMPLES[::400]], noise)
    whole = {sample.key: sample for sample in with_label_noise(SAMPLES, noise)}
    assert all(whole[sample.key] == sample for sample in some)
    names = [sample.class_name for sample in SAMPLES]
    for less, more, name in zip(noisy(0.2), noisy(0.4), names, strict=True):
        assert less in (name, more)
    assert noisy(0.4, seed=1) != noisy(0.4)


def test_noise_may_stay_in_the_vertical() -> None:
    """Among `vertical`, a wrong class is one of the same vertical."""
    found = noisy(1.0, among="vertical")
    for label, sample in zip(found, SAMPLES, strict=True):
        assert label != sample.class_name
        assert label.partition("/")[0] == sample.class_name.partition("/")[0]


def test_test_images_and_unlabelled_ones_are_left_alone() -> None:
    """Only training labels are wrong."""
    others = [
        Sample(key="held", class_name="animal/a", split=TEST),
        Sample(key="bare", class_name=None, split=TRAIN),
    ]
    assert with_label_noise([*others, *SAMPLES], LabelNoise(share=1.0))[:2] == others


def test_manifest_holds_the_wrong_labels(tmp_path: Path) -> None:
    """Rows have them, again on every update; another share replaces the rows that it changes."""
    root = tmp_path / "images"
    for number in range(60):
        (root / str(number % 3)).mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), number).save(root / str(number % 3) / f"{number}.png")

    def project(**noise: object) -> Project:
        return Project.model_validate(
            {
                "workspace": str(tmp_path / "run"),
                "data": {"source": "image_folder", "root": root, "test_fraction": 0.3},
                "teachers": [{"name": "all", "builder": "b", "classes": {"vertical": "all"}}],
                **noise,
            }
        )

    clean = update_manifest(project())
    right = dict(zip(clean.manifest.keys, clean.manifest.labels, strict=True))
    found = update_manifest(project(label_noise={"share": 0.5}))
    rows = found.manifest.rows(TRAIN)
    wrong = [r for r in rows if found.manifest.labels[r] != right[found.manifest.keys[r]]]
    assert 0 < len(wrong) < len(rows) == len(clean.manifest.rows(TRAIN))
    assert (found.added, found.retired, found.unchanged) == (
        len(wrong),
        len(wrong),
        60 - len(wrong),
    )
    assert update_manifest(project(label_noise={"share": 0.5})).unchanged == 60
