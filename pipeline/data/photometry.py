"""Colour, blur and noise of rendered views.

In: batched operations on (n, channels, S, S) float32 pixels in [0, 1]. Left out: which views they
apply to and in which order (views.py).

The pixels of a view must not depend, in any bit, on the batch, the machine's threads or the
loader's workers. So every operation here is elementwise with a fixed order of additions; no
convolution, no matrix product, no float mean, no `exp` on pixels. Gray images keep one channel;
each operation gives what it would give on three equal channels, up to float32 rounding.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from storage_schemas.philox import philox4x32
from storage_schemas.view_parameters import ViewParameters

NOISE_GRID: Final = 64
"""Side of the grid on which noise is drawn; other sizes see it resized, as they see the image."""

_LUMA: Final = (0.299, 0.587, 0.114)
# NTSC YIQ: row 0 is luma; rows 1 and 2 span chrominance and vanish on gray.
_YIQ: Final = np.array(
    [_LUMA, (0.595716, -0.274453, -0.321263), (0.211456, -0.522591, 0.311135)], np.float64
)
_RGB: Final = np.linalg.inv(_YIQ)
_EXACT_LUMA: Final = 65536.0
_BLUR_CHUNK: Final = 2**18
_NOISE_CHUNK: Final = 8


def luma(pixels: Tensor) -> Tensor:
    """Return the brightness of (n, 1 or 3, S, S) pixels, (n, 1, S, S)."""
    if pixels.shape[1] == 1:
        return pixels
    red, green, blue = pixels[:, :1], pixels[:, 1:2], pixels[:, 2:]
    return red * _LUMA[0] + green * _LUMA[1] + blue * _LUMA[2]


def adjust_tone(pixels: Tensor, parameters: ViewParameters) -> Tensor:
    """Scale by the brightness, then move away from the mean luma by the contrast."""
    pixels = (pixels * _column(parameters.brightness)).clamp_(0, 1)
    contrast = _column(parameters.contrast)
    # Sums of integers are exact in float64, so the mean is free of summation order.
    levels = (luma(pixels) * _EXACT_LUMA).round_()
    mean = levels.sum((1, 2, 3), dtype=torch.float64) / (_EXACT_LUMA * levels[0].numel())
    mean = mean.to(torch.float32)[:, None, None, None]
    return ((pixels - mean) * contrast + mean).clamp_(0, 1)


def adjust_chroma(pixels: Tensor, parameters: ViewParameters) -> Tensor:
    """Scale (saturation) and turn (hue) the chrominance plane of YIQ; luma stays.

    A turn in YIQ is one 3 x 3 matrix per image, where HSV needs branches per pixel; the two agree
    in what they are for, not in values.
    """
    if pixels.shape[1] == 1:
        return pixels
    turn = 2 * np.pi * parameters.hue
    cos, sin = (part * parameters.saturation for part in (np.cos(turn), np.sin(turn)))
    plane = np.zeros((len(turn), 3, 3))
    plane[:, 0, 0] = 1.0
    plane[:, 1, 1] = plane[:, 2, 2] = cos
    plane[:, 1, 2], plane[:, 2, 1] = -sin, sin
    matrix = torch.from_numpy((_RGB @ plane @ _YIQ).astype(np.float32))[..., None, None]
    red, green, blue = pixels.unbind(1)
    rows = [
        red * matrix[:, c, 0] + green * matrix[:, c, 1] + blue * matrix[:, c, 2] for c in range(3)
    ]
    return torch.stack(rows, dim=1).clamp_(0, 1)


def blur(pixels: Tensor, parameters: ViewParameters) -> Tensor:
    """Convolve with a Gaussian cut off at three standard deviations; edges are repeated."""
    sigma = parameters.blur_sigma * pixels.shape[-1]
    radius = np.ceil(3 * sigma).astype(np.int64)
    blurred = pixels.clone()
    # A few images at a time: all taps of a chunk then run inside the processor's cache.
    chunk = max(1, _BLUR_CHUNK // pixels[0].numel())
    for size in np.unique(radius[radius > 0]).tolist():
        same = np.flatnonzero(radius == size)
        for start in range(0, len(same), chunk):
            part = torch.from_numpy(same[start : start + chunk])
            blurred[part] = _blur_by(pixels[part], sigma[part.numpy()], size)
    return blurred


def _blur_by(pixels: Tensor, sigma: npt.NDArray[np.float64], radius: int) -> Tensor:
    weights = np.exp(-0.5 * (np.arange(radius + 1) / sigma[:, None]) ** 2)
    weights /= weights[:, :1] + 2 * weights[:, 1:].sum(1, keepdims=True)
    taps = torch.from_numpy(weights.astype(np.float32))[..., None, None, None]
    side = pixels.shape[-1]
    for dim, padding in ((3, (radius, radius, 0, 0)), (2, (0, 0, radius, radius))):
        padded = functional.pad(pixels, padding, mode="replicate")
        pixels = pixels * taps[:, 0]
        for offset in range(1, radius + 1):
            pair = padded.narrow(dim, radius - offset, side) + padded.narrow(
                dim, radius + offset, side
            )
            pixels += pair.mul_(taps[:, offset])
    return pixels


def add_noise(pixels: Tensor, parameters: ViewParameters) -> Tensor:
    """Add the view's noise field, the same in all channels, and clip to [0, 1].

    The field has the wanted standard deviation at 64 pixels. A smaller render sees its local
    means, as it sees those of the image; a larger one interpolates it.
    """
    size = pixels.shape[-1]
    field = torch.from_numpy(noise_field(parameters.noise_key))[:, None]
    if size < NOISE_GRID:
        field = functional.adaptive_avg_pool2d(field, size)
    elif size > NOISE_GRID:
        field = functional.interpolate(field, (size, size), mode="bilinear", align_corners=False)
    return (pixels + field * _column(parameters.noise_std)).clamp_(0, 1)


def noise_field(keys: npt.NDArray[np.uint32]) -> npt.NDArray[np.float32]:
    """Return noise of mean 0 and variance 1 from Philox bits.

    Each value is a sum of four random bytes: nearly normal, and exact on every machine.

    Args:
        keys: (n, 2) uint32 Philox keys.

    Returns:
        (n, 64, 64) float32.
    """
    counter = np.arange(NOISE_GRID * NOISE_GRID // 4)
    fields = np.empty((len(keys), NOISE_GRID * NOISE_GRID), np.float32)
    for start in range(0, len(keys), _NOISE_CHUNK):
        part = slice(start, start + _NOISE_CHUNK)
        words = philox4x32((counter, 0, 0, 0), (keys[part, :1], keys[part, 1:]))
        # Bytes 0 and 2, then 1 and 3, are added side by side in 16-bit halves.
        pairs = (words & 0x00FF00FF) + ((words >> 8) & 0x00FF00FF)
        sums = (pairs & 0xFFFF) + (pairs >> 16)
        fields[part] = sums.swapaxes(0, 1).reshape(sums.shape[1], -1)
    deviation = np.sqrt(4 * (256**2 - 1) / 12)
    fields -= 4 * 127.5
    fields *= np.float32(1 / deviation)
    return fields.reshape(len(keys), NOISE_GRID, NOISE_GRID)


def _column(values: npt.NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))[:, None, None, None]
