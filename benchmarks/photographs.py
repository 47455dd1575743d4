"""JPEG photographs made here: colours and texture whose spectrum falls as that of real ones.

Files of 500 x 375 pixels at quality 90 have about 100 kB, as those of ImageNet do. Shapes without
texture would decode in half the time.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (500, 375)


def photograph(seed: int) -> Image.Image:
    """Return an image of `SIZE` whose amplitudes fall as 1 / frequency."""
    rng = np.random.default_rng(seed)
    width, height = SIZE
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = 1.0

    def texture(slope: float) -> np.ndarray:
        spectrum = np.fft.rfft2(rng.standard_normal((height, width))) / frequency**slope
        field = np.fft.irfft2(spectrum, s=(height, width))
        return (field - field.mean()) / field.std()

    luma = texture(1.1)
    pixels = np.stack([120 + 50 * luma + 15 * texture(1.3) for _ in range(3)], axis=-1)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def write_photographs(root: Path, classes: list[str], images: int, distinct: int = 32) -> None:
    """Write class folders of JPEG files, the classes in turn; `distinct` pictures repeat."""
    pictures = [photograph(number) for number in range(min(distinct, images))]
    for number in range(images):
        path = root / classes[number % len(classes)] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pictures[number % len(pictures)].save(path, quality=90)
