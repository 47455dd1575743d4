"""Views as pixels: what a `ViewParameters` does to decoded images.

In: crop and resize (in whole levels, by integer arithmetic), then the affine map, colour, blur,
noise and the mix of two views (torch, batched). Left out: the draw of the parameters
(storage_schemas.view_recipe), decoding, normalisation (view_reader.py).

A view has the same bits whatever else is in the batch and however many threads run; see
photometry.py for how. An image is touched only by operations whose parameters differ from neutral.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from pipeline.data import photometry
from storage_schemas.errors import DataError
from storage_schemas.view_parameters import ViewParameters

_CHANNELS: Final = {"L": 1, "RGB": 3}
_WHOLE_PIXELS: Final = 128
"""Boxes of at least this side are rounded to whole pixels, which moves no edge by more than 1/256
of it, and resized by torch, in a third of Pillow's time. Smaller ones keep their fractions: in an
image of 32 pixels these are most of the positions that a box can have."""
_CHUNK: Final = 2**20


def render(
    images: Sequence[Image.Image], parameters: ViewParameters, *, size: int, channels: int
) -> Tensor:
    """Render one view of each image; mixing is not part of it.

    Args:
        images: B images in mode L or RGB, of any sizes.
        parameters: Of B views.
        size: S, side of the rendered square in pixels.
        channels: 1 or 3. Colour is reduced to luma last, after all operations on colour.

    Returns:
        (B, channels, S, S) float32 in [0, 1].

    Raises:
        DataError: If an image is neither L nor RGB.
        ValueError: If the counts of images and parameters differ.
    """
    crops = crop(images, parameters, size=size)
    return augment(crops, parameters, size=size, channels=channels)


def crop(images: Sequence[Image.Image], parameters: ViewParameters, *, size: int) -> list[bytes]:
    """Cut each view's box out of its image and resize it, antialiased, to (size, size).

    The first half of `render`; a caller that reads many large images can drop each one after it.
    What nothing else moves is mirrored here, while pixels are bytes.

    Returns:
        Of each image its (1 or 3, size, size) uint8 pixels.
    """
    if len(images) != len(parameters):
        raise ValueError(
            f"images and parameters must be as many, got {len(images)} and {len(parameters)}"
        )
    foreign = sorted({image.mode for image in images} - set(_CHANNELS))
    if foreign:
        raise DataError(
            f"images must be in mode L or RGB, got {foreign}; `Source.load` must convert them"
        )
    boxes = parameters.crop_boxes([i.width for i in images], [i.height for i in images])
    mirrored = parameters.flip & ~_moved(parameters)
    pixels: dict[int, Tensor] = {}
    cut = []
    for image, box, mirror in zip(images, boxes.tolist(), mirrored.tolist(), strict=True):
        if min(box[2] - box[0], box[3] - box[1]) < _WHOLE_PIXELS:
            cut.append(_small_crop(image, box, size, mirror=mirror))
            continue
        if id(image) not in pixels:  # views of one image share them
            pixels[id(image)] = _channels_last(image)
        cut.append(_large_crop(pixels[id(image)], box, size, mirror=mirror))
    return cut


def _small_crop(image: Image.Image, box: Sequence[float], size: int, *, mirror: bool) -> bytes:
    left, top, right, bottom = box
    small = image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, right, bottom))
    if mirror:
        small = small.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    # Pillow takes the channels apart several times faster than a strided copy would.
    return b"".join(small.tobytes("raw", band) for band in small.getbands())


def _large_crop(pixels: Tensor, box: Sequence[float], size: int, *, mirror: bool) -> bytes:
    left, top, right, bottom = map(round, box)
    inside = pixels[None, :, top:bottom, left:right]
    large = functional.interpolate(inside, (size, size), mode="bilinear", antialias=True)
    return (large.flip(-1) if mirror else large).numpy().tobytes()


def augment(
    crops: Sequence[bytes], parameters: ViewParameters, *, size: int, channels: int
) -> Tensor:
    """Turn B crops into floats and apply all else; the second half of `render`."""
    # numpy asks for huge pages: page faults would be two fifths of the time of a 224-pixel view.
    rendered = torch.from_numpy(np.empty((len(crops), channels, size, size), np.float32))
    chunk = max(1, _CHUNK // (size * size))
    for depth in _CHANNELS.values():
        values = depth * size * size
        same = np.array([i for i, pixels in enumerate(crops) if len(pixels) == values], np.int64)
        in_place = len(same) == len(crops) and depth == channels
        for start in range(0, len(same), chunk):
            part = same[start : start + chunk]
            place = slice(start, start + chunk) if in_place else torch.from_numpy(part)
            joined = bytearray().join(crops[i] for i in part.tolist())
            planes = torch.frombuffer(joined, dtype=torch.uint8).view(-1, depth, size, size)
            into = rendered[place] if in_place else torch.empty(planes.shape)
            pixels = _operate(into.copy_(planes).div_(255.0), parameters.take(part))
            if not in_place or pixels is not into:
                rendered[place] = photometry.luma(pixels) if channels == 1 else pixels
    return rendered


def mix(first: Tensor, second: Tensor, parameters: ViewParameters) -> Tensor:
    """Mix two renders of the same views: mixup by weight, cutmix by area.

    A pixel that the cutmix box covers in part takes that share of the second image, so that the
    weight is exact at every size.

    Args:
        first: (B, channels, S, S) float32.
        second: The partners, in the same shape.
        parameters: Of the first images; all `mixed`.
    """
    size = first.shape[-1]
    box = parameters.mix_box
    share = (1 - parameters.mix_weight)[:, None, None]
    if np.any(box):
        columns = _coverage(box[:, 0], box[:, 2], size)
        share = _coverage(box[:, 1], box[:, 3], size)[:, :, None] * columns[:, None, :]
    second_share = torch.from_numpy(share.astype(np.float32))[:, None]
    return first * (1 - second_share) + second * second_share


def _coverage(
    low: npt.NDArray[np.float64], high: npt.NDArray[np.float64], size: int
) -> npt.NDArray[np.float64]:
    """Share of each pixel's extent that lies between low and high, (B, S)."""
    edges = np.arange(size + 1) / size
    inside = np.minimum(high[:, None], edges[1:]) - np.maximum(low[:, None], edges[:-1])
    return np.asarray(np.clip(inside * size, 0.0, 1.0), np.float64)


def _channels_last(image: Image.Image) -> Tensor:
    """Return the (1 or 3, height, width) uint8 pixels of an image, channels last in memory."""
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(image.height, image.width, _CHANNELS[image.mode]).permute(2, 0, 1)


def _moved(p: ViewParameters) -> npt.NDArray[np.bool_]:
    moved = (p.angle != 0) | (p.translate_x != 0) | (p.translate_y != 0)
    return np.asarray(moved | (p.zoom != 1) | (p.shear != 0))


def _operate(pixels: Tensor, parameters: ViewParameters) -> Tensor:
    p = parameters
    pixels = _where(_moved(p), _warp, pixels, p)
    toned = (p.brightness != 1) | (p.contrast != 1)
    pixels = _where(toned, photometry.adjust_tone, pixels, p)
    tinted = (p.saturation != 1) | (p.hue != 0)
    pixels = _where(tinted, photometry.adjust_chroma, pixels, p)
    pixels = _where(p.blur_sigma > 0, photometry.blur, pixels, p)
    return _where(p.noise_std > 0, photometry.add_noise, pixels, p)


def _where(
    chosen: npt.NDArray[np.bool_],
    operation: Callable[[Tensor, ViewParameters], Tensor],
    pixels: Tensor,
    parameters: ViewParameters,
) -> Tensor:
    """Apply an operation to the chosen images only."""
    if chosen.all():
        return operation(pixels, parameters)
    if chosen.any():
        positions = np.flatnonzero(chosen)
        index = torch.from_numpy(positions)
        pixels[index] = operation(pixels[index], parameters.take(positions))
    return pixels


def _warp(pixels: Tensor, parameters: ViewParameters) -> Tensor:
    """Flip and affine map as one bilinear look-up; outside the square, its edge is repeated."""
    size = pixels.shape[-1]
    matrix = torch.from_numpy(parameters.sampling_matrices().astype(np.float32))[..., None, None]
    # Pixel centres. Not `affine_grid`: it is a matrix product, whose bits may vary with B.
    centres = (torch.arange(size, dtype=torch.float32) * 2 + 1) / size - 1
    x, y = centres[None, None, :], centres[None, :, None]
    grid = torch.empty(len(pixels), size, size, 2)
    for axis in range(2):
        row = matrix[:, axis]
        grid[..., axis] = row[:, 0] * x + row[:, 1] * y + row[:, 2]
    return functional.grid_sample(
        pixels, grid, mode="bilinear", padding_mode="border", align_corners=False
    )
