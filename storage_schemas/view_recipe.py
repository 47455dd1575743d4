"""`ViewRecipe`: which view v of row i is, as a pure function of (recipe, seed, i, v).

In: the augmentations of a project with their bounds, the recipe's digest, and the draw of all
parameters from counter-based random bits. Left out: pixels (pipeline.data.views).

A soft label belongs to a view. The teacher's run and the student's run draw the same parameters
here, weeks and machines apart, so three things are fixed: the bits (Philox4x32-10 with the seed
as key and (row, view, block) as counter), the slot of each parameter in those bits (an operation
added to a recipe changes no other parameter), and the grid of the values (multiples of 2^-16, so
that the last bit of a library's `pow` does not matter).
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from storage_schemas.label_space import canonical_digest
from storage_schemas.mixing import MixPools, symmetric_beta_quantile
from storage_schemas.philox import philox4x32, split_words, uniforms
from storage_schemas.view_parameters import ViewParameters

RECIPE_VERSION: Final = 2
"""Raised when the same recipe would give other parameters or other pixels."""

_STEP: Final = 2.0**-16

# Slot = 4 * block + word of the block. Never renumber; a new parameter takes a new slot.
_SLOTS: Final = {
    "crop_area": 0,
    "crop_aspect": 1,
    "crop_x": 2,
    "crop_y": 3,
    "flip": 4,
    "angle": 5,
    "translate_x": 6,
    "translate_y": 7,
    "zoom": 8,
    "shear": 9,
    "brightness": 10,
    "contrast": 11,
    "saturation": 12,
    "hue": 13,
    "blur_on": 14,
    "blur_sigma": 15,
    "noise_on": 16,
    "noise_key_low": 17,
    "noise_key_high": 18,
    "mix_on": 19,
    "mix_weight": 20,
    "mix_x": 21,
    "mix_y": 22,
    "mix_partner": 23,
}
_BLOCKS: Final = 6


def _ordered(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise ValueError(f"must be [low, high] with low <= high, got {list(value)}")
    return value


Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Strength = Annotated[float, Field(ge=0.0, le=2.0)]
_Share = Annotated[float, Field(gt=0.0, le=1.0)]
_Ratio = Annotated[float, Field(gt=0.0, le=100.0)]
_Zoom = Annotated[float, Field(ge=0.1, le=10.0)]
_Sigma = Annotated[float, Field(ge=0.0, le=0.25)]


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Crop(_Settings):
    """A random part of the image, resized to the square (RandomResizedCrop)."""

    scale: Annotated[tuple[_Share, _Share], AfterValidator(_ordered)] = Field(
        (0.08, 1.0), description="share of the image's area"
    )
    ratio: Annotated[tuple[_Ratio, _Ratio], AfterValidator(_ordered)] = Field(
        (3 / 4, 4 / 3), description="width / height"
    )


class Affine(_Settings):
    """A random turn, shift, magnification and shear about the centre."""

    degrees: float = Field(0.0, ge=0.0, le=180.0, description="turned by -degrees..degrees")
    translate: float = Field(0.0, ge=0.0, le=1.0, description="share of the side, both ways")
    scale: Annotated[tuple[_Zoom, _Zoom], AfterValidator(_ordered)] = (1.0, 1.0)
    shear: float = Field(0.0, ge=0.0, le=60.0, description="degrees along x, both ways")


class Color(_Settings):
    """Random factors in [max(0, 1 - s), 1 + s]; hue is turned by up to `hue` turns."""

    brightness: Strength = 0.0
    contrast: Strength = 0.0
    saturation: Strength = 0.0
    hue: float = Field(0.0, ge=0.0, le=0.5)


class Blur(_Settings):
    """Gaussian blur of some views."""

    probability: Probability = 0.5
    sigma: Annotated[tuple[_Sigma, _Sigma], AfterValidator(_ordered)] = Field(
        (0.0005, 0.01), description="standard deviation as a share of the side"
    )


class Noise(_Settings):
    """Additive noise on some views, the same in all channels."""

    probability: Probability = 0.5
    std: Probability = Field(0.05, description="in units of the [0, 1] pixel range")


class Mix(_Settings):
    """A second image of the same teacher mixed into some views.

    mixup: Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization". cutmix: Yun et al.
    2019, "CutMix: Regularization Strategy to Train Strong Classifiers".
    """

    kind: Literal["mixup", "cutmix"]
    alpha: float = Field(1.0, ge=0.05, le=16.0, description="weights are Beta(alpha, alpha)")
    probability: Probability = 1.0


class ViewRecipe(_Settings):
    """The augmentations of a project; views of all rows follow from it and nothing else.

    Views from `count` on exist as well; specialists train on them.
    """

    count: int = Field(4, ge=1, le=65535, description="views labelled per row")
    seed: int = Field(0, ge=0, lt=2**64)
    crop: Crop | None = Field(None, description="null: the largest centred square")
    flip: Probability = Field(0.0, description="mirrored left to right")
    affine: Affine | None = None
    color: Color | None = None
    blur: Blur | None = None
    noise: Noise | None = None
    mix: Mix | None = None

    @classmethod
    def evaluation_recipe(cls) -> ViewRecipe:
        """Return the one view without augmentation: the largest centred square."""
        return cls(count=1)

    @property
    def digest(self) -> str:
        """sha256 over the recipe version and the canonical JSON of all settings."""
        return canonical_digest({"version": RECIPE_VERSION, **self.model_dump(mode="json")})

    def _words(
        self, rows: npt.NDArray[np.int64], views: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.uint32]:
        """Return the raw bits of each (row, view), (slots, B)."""
        if rows.ndim != 1 or rows.shape != views.shape:
            raise ValueError(
                f"rows and views must be (B,) of one length, got {rows.shape} and {views.shape}"
            )
        if rows.size and (rows.min() < 0 or views.min() < 0 or views.max() >= 2**32):
            raise ValueError("rows must be >= 0 and views in [0, 2^32)")
        low, high = split_words(rows)
        blocks = np.arange(_BLOCKS)[:, None]
        bits = philox4x32((low, high, views, blocks), split_words(self.seed))
        return bits.swapaxes(0, 1).reshape(4 * _BLOCKS, len(rows))

    def parameters(
        self, rows: npt.NDArray[np.int64], views: npt.NDArray[np.int64]
    ) -> ViewParameters:
        """Draw the parameters of B views.

        Args:
            rows: (B,) int64 manifest rows, >= 0.
            views: (B,) int64 view numbers, >= 0.

        Raises:
            ValueError: If the shapes differ or a number is out of range.
        """
        words = self._words(rows, views)
        u = uniforms(words)

        def draw(name: str, low: float, high: float) -> npt.NDArray[np.float64]:
            return _snap(low + u[_SLOTS[name]] * (high - low), low, high)

        def chance(name: str, probability: float) -> npt.NDArray[np.bool_]:
            return np.asarray(u[_SLOTS[name]] < probability)

        crop = self.crop or Crop(scale=(1.0, 1.0), ratio=(1.0, 1.0))
        place = (0.0, 1.0) if self.crop else (0.5, 0.5)
        affine = self.affine or Affine()
        color = self.color or Color()
        blur = self.blur or Blur(probability=0.0)
        noise = self.noise or Noise(probability=0.0)
        return ViewParameters(
            crop_ratio=crop.ratio,
            crop_area=draw("crop_area", *crop.scale),
            crop_aspect=draw("crop_aspect", *place),
            crop_x=draw("crop_x", *place),
            crop_y=draw("crop_y", *place),
            flip=chance("flip", self.flip),
            angle=draw("angle", -affine.degrees, affine.degrees),
            translate_x=draw("translate_x", -affine.translate, affine.translate),
            translate_y=draw("translate_y", -affine.translate, affine.translate),
            zoom=draw("zoom", *affine.scale),
            shear=draw("shear", -affine.shear, affine.shear),
            brightness=draw("brightness", *_factors(color.brightness)),
            contrast=draw("contrast", *_factors(color.contrast)),
            saturation=draw("saturation", *_factors(color.saturation)),
            hue=draw("hue", -color.hue, color.hue),
            blur_sigma=np.where(
                chance("blur_on", blur.probability), draw("blur_sigma", *blur.sigma), 0.0
            ),
            noise_std=np.where(chance("noise_on", noise.probability), noise.std, 0.0),
            noise_key=words[[_SLOTS["noise_key_low"], _SLOTS["noise_key_high"]]].T.copy(),
            mix_word=words[_SLOTS["mix_partner"]],
            **self._mixing(u),
        )

    def _mixing(self, u: npt.NDArray[np.float64]) -> dict[str, Any]:
        batch = u.shape[1]
        if self.mix is None:
            return {
                "mixed": np.zeros(batch, np.bool_),
                "mix_box": np.zeros((batch, 4)),
                "mix_weight": np.ones(batch),
            }
        mixed = u[_SLOTS["mix_on"]] < self.mix.probability
        weight = _snap(symmetric_beta_quantile(self.mix.alpha, u[_SLOTS["mix_weight"]]), 0.0, 1.0)
        box = np.zeros((batch, 4))
        if self.mix.kind == "cutmix":
            half = np.sqrt(1 - weight) / 2
            x, y = u[_SLOTS["mix_x"]], u[_SLOTS["mix_y"]]
            edges = np.stack([x - half, y - half, x + half, y + half], axis=-1)
            box = np.where(mixed[:, None], _snap(edges, 0.0, 1.0), 0.0)
            weight = 1 - (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])
        return {"mixed": mixed, "mix_box": box, "mix_weight": np.where(mixed, weight, 1.0)}

    def partner_rows(
        self, rows: npt.NDArray[np.int64], views: npt.NDArray[np.int64], pools: MixPools
    ) -> npt.NDArray[np.int64]:
        """Return the row mixed into each view, (B,) int64; the row itself where none is."""
        parameters = self.parameters(rows, views)
        partners = pools.partners(rows, parameters.mix_word)
        return np.where(parameters.mixed, partners, rows)


def _snap(value: npt.NDArray[np.float64], low: float, high: float) -> npt.NDArray[np.float64]:
    """Round to multiples of 2^-16 inside [low, high]."""
    return np.asarray(np.clip(np.round(value / _STEP) * _STEP, low, high), np.float64)


def _factors(strength: float) -> tuple[float, float]:
    return max(0.0, 1 - strength), 1 + strength
