"""`ViewParameters`: what exactly is done to the pixels of each (row, view), as numbers.

In: the drawn parameters as parallel arrays, the crop box for an image size, the affine matrix.
Left out: how they are drawn (view_recipe.py) and pixels (pipeline.data.views).

All lengths are fractions of the side of the rendered square, so that a teacher at 224 pixels and
a student at 32 see the same geometry. An operation that a recipe lacks has its neutral value.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

import numpy as np
import numpy.typing as npt

BOX_STEP: Final = 2.0**-8
"""Pixels; crop boxes are multiples of it. Exact in the float32 that Pillow computes boxes in."""

FloatArray = npt.NDArray[np.float64]
WordArray = npt.NDArray[np.uint32]


@dataclass(frozen=True, kw_only=True, eq=False)
class ViewParameters:
    """Parameters of B views, one array per parameter.

    Every float64 value is a multiple of 2^-16, or a bound of the recipe.

    Attributes:
        crop_ratio: Bounds of width / height of the crop, one pair for all rows.
        crop_area: (B,) share of the image's area.
        crop_aspect: (B,) in [0, 1], where between the ratios that fit, on a log scale.
        crop_x, crop_y: (B,) in [0, 1], place of the crop in the room left; 0.5 is centred.
        flip: (B,) bool, mirrored left to right, before the affine map.
        angle: (B,) degrees, clockwise.
        translate_x, translate_y: (B,) shares of the side, right and down.
        zoom: (B,) factor of magnification.
        shear: (B,) degrees, along x.
        brightness, contrast, saturation: (B,) factors; 1 changes nothing.
        hue: (B,) turns of the YIQ chrominance plane.
        blur_sigma: (B,) standard deviation as a share of the side; 0 is no blur.
        noise_std: (B,) standard deviation, in units of the [0, 1] pixel range; 0 is none.
        noise_key: (B, 2) uint32, Philox key of the noise field.
        mixed: (B,) bool, whether a partner is mixed in.
        mix_box: (B, 4) left, top, right, bottom as shares of the side: where cutmix shows the
            partner. Empty (all 0) under mixup.
        mix_weight: (B,) float64 weight of the first image; 1 where nothing is mixed. Under
            cutmix exactly 1 - the area of `mix_box`.
        mix_word: (B,) uint32, picks the partner inside a pool.
    """

    crop_ratio: tuple[float, float]
    crop_area: FloatArray
    crop_aspect: FloatArray
    crop_x: FloatArray
    crop_y: FloatArray
    flip: npt.NDArray[np.bool_]
    angle: FloatArray
    translate_x: FloatArray
    translate_y: FloatArray
    zoom: FloatArray
    shear: FloatArray
    brightness: FloatArray
    contrast: FloatArray
    saturation: FloatArray
    hue: FloatArray
    blur_sigma: FloatArray
    noise_std: FloatArray
    noise_key: WordArray
    mixed: npt.NDArray[np.bool_]
    mix_box: FloatArray
    mix_weight: FloatArray
    mix_word: WordArray

    def __len__(self) -> int:
        return len(self.crop_area)

    def take(self, positions: npt.NDArray[np.int64]) -> ViewParameters:
        """Return the parameters at these positions, in this order."""
        arrays = {
            field.name: getattr(self, field.name)[positions]
            for field in fields(self)
            if field.name != "crop_ratio"
        }
        return ViewParameters(crop_ratio=self.crop_ratio, **arrays)

    def crop_boxes(self, widths: npt.ArrayLike, heights: npt.ArrayLike) -> FloatArray:
        """Return the crop of each view on images of these sizes.

        As RandomResizedCrop (Szegedy et al. 2015, section 6), but without retries: given the
        area, the aspect ratio is log-uniform over those that fit in the image. When none of the
        recipe's ratios fits, the crop is the largest one of the nearest ratio.

        Args:
            widths: (B,) pixels.
            heights: (B,) pixels.

        Returns:
            (B, 4) float64 left, top, right, bottom in pixels, multiples of 2^-8.
        """
        width = np.asarray(widths, np.float64)
        height = np.asarray(heights, np.float64)
        low, high = self.crop_ratio
        area = self.crop_area * width * height
        narrowest = np.clip(area / height**2, low, high)
        widest = np.clip(width**2 / area, low, high)
        ratio = narrowest * (widest / narrowest) ** self.crop_aspect
        box_width = np.sqrt(area * ratio)
        box_height = np.sqrt(area / ratio)
        shrink = np.minimum(1.0, np.minimum(width / box_width, height / box_height))
        box_width = np.clip(_round_box(box_width * shrink), 1.0, width)
        box_height = np.clip(_round_box(box_height * shrink), 1.0, height)
        left = _round_box(self.crop_x * (width - box_width))
        top = _round_box(self.crop_y * (height - box_height))
        return np.stack([left, top, left + box_width, top + box_height], axis=-1)

    def crop_box(self, i: int, width: int, height: int) -> tuple[float, float, float, float]:
        """Return `crop_boxes` of view i on one image size."""
        left, top, right, bottom = self.take(np.array([i])).crop_boxes([width], [height])[0]
        return float(left), float(top), float(right), float(bottom)

    def sampling_matrices(self) -> FloatArray:
        """Return the map from an output point to the input point that it shows.

        Points are (x, y, 1) with the square's centre at 0 and its edges at -1 and 1. The output
        is the input mirrored (`flip`), then sheared, magnified, turned and moved.

        Returns:
            (B, 2, 3) float64.
        """
        turn = np.deg2rad(self.angle)
        cos, sin = np.cos(turn), np.sin(turn)
        slope = np.tan(np.deg2rad(self.shear))
        # Output = move(turn(zoom(shear(mirror(input))))); this is its inverse, in closed form.
        row_x = np.stack([cos + slope * sin, sin - slope * cos], axis=-1) / self.zoom[:, None]
        row_y = np.stack([-sin, cos], axis=-1) / self.zoom[:, None]
        row_x = np.where(self.flip[:, None], -row_x, row_x)
        linear = np.stack([row_x, row_y], axis=1)
        shift = np.stack([self.translate_x, self.translate_y], axis=-1) * 2.0
        moved = -(linear[:, :, 0] * shift[:, :1] + linear[:, :, 1] * shift[:, 1:])
        return np.concatenate([linear, moved[:, :, None]], axis=2)


def _round_box(value: FloatArray) -> FloatArray:
    return np.asarray(np.round(value / BOX_STEP) * BOX_STEP, np.float64)
