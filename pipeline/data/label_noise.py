"""Wrong labels on purpose: a share of the training images says another class.

In: symmetric noise, as a function of the seed and the key of an image. Left out: what is trained
on it. The noise is put in where the manifest is made, so that whatever reads a training label,
i.e. routing, specialists and the control, sees the wrong one and nobody the right one. Test
images keep theirs.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Sequence
from dataclasses import replace

from pipeline.config import LabelNoise
from pipeline.data.source import Sample
from storage_schemas.manifest import TRAIN


def with_label_noise(samples: Sequence[Sample], noise: LabelNoise) -> list[Sample]:
    """Return the samples, some labelled training ones with another class.

    An image is hit or not, and draws its class, by a hash of (seed, key). The images hit at a
    smaller share are among those hit at a larger one. Where classes are added to the data, the
    wrong ones are drawn anew.
    """
    names = sorted({sample.class_name for sample in samples if sample.class_name is not None})
    by_vertical: dict[str, list[str]] = {}
    for name in names:
        by_vertical.setdefault(name.partition("/")[0], []).append(name)
    return [
        sample
        if sample.split != TRAIN or sample.class_name is None
        else replace(
            sample,
            class_name=_label(
                sample.key,
                sample.class_name,
                names if noise.among == "all" else by_vertical[sample.class_name.partition("/")[0]],
                noise,
            ),
        )
        for sample in samples
    ]


def _label(key: str, name: str, names: Sequence[str], noise: LabelNoise) -> str:
    """Return a class for a sample; `names` are sorted and hold its own."""
    digest = hashlib.blake2b(f"{noise.seed}/{key}".encode(), digest_size=16).digest()
    hit, draw = (int.from_bytes(half, "big") for half in (digest[:8], digest[8:]))
    if hit >= noise.share * 2**64 or len(names) == 1:
        return name
    place = draw * (len(names) - 1) >> 64
    return names[place + (place >= bisect.bisect_left(names, name))]
