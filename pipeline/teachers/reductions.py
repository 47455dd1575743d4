"""Reductions: from the output of a block to the few numbers that are stored of it.

In: `REDUCTIONS`, the one table of them, and the range of values stored as uint8. Left out: taps
(pipeline.models.taps), and when constants are fitted and what is written (features.py).

A reduction first makes a small map of the output, by a mean over channels or over places. What it
fits, it fits on these maps, since they are what is stored. Averaging over places and projecting
channels commute, so codes of an averaged map are the averaged codes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.config import FeatureConfig
from pipeline.numerics.codewords import (
    Dictionary,
    dense_code,
    fit_dictionary,
    similarity_logits,
    sparse_code,
)
from pipeline.numerics.moments import StreamingMoments
from pipeline.numerics.uniform_sample import UniformSample
from storage_schemas.block_feature_schema import LARGEST_CODE, LARGEST_NUMBER
from storage_schemas.errors import ConfigError

Constants = Mapping[str, npt.NDArray[np.float64]]
Shape = tuple[int, int, int]

RANGE_DEVIATIONS = 6.0
LEAST_DEVIATION = 1 / 16  # of the widest channel's
CODEWORD_SAMPLE_BYTES = 64 * 2**20


class Fitted(NamedTuple):
    """What a fit found.

    Attributes:
        constants: Of the reduction, by name.
        mean: (c,) float64, of each stored channel; empty where none may be stored as uint8.
        deviation: (c,) float64 standard deviation of each stored channel; empty likewise.
    """

    constants: dict[str, npt.NDArray[np.float64]]
    mean: npt.NDArray[np.float64] = np.zeros(0)
    deviation: npt.NDArray[np.float64] = np.zeros(0)


class ArrayForm(NamedTuple):
    """What one stored array of a reduction is like.

    Attributes:
        shape: (channels, height, width) of one row in one view.
        dtype: As stored.
    """

    shape: Shape
    dtype: Literal["float16", "uint8", "uint16"]


class Fit(Protocol):
    """Takes in maps, batch by batch, and then says what it found."""

    def update(self, maps: Tensor) -> None:
        """Take in (B, C, h, w) maps."""

    def result(self) -> Fitted:
        """Return what was found in all of them."""


class _NothingFitted:
    """The fit of a reduction without constants: only the spread of its channels."""

    def __init__(self, config: FeatureConfig, channels: int) -> None:
        self._moments = StreamingMoments(channels, covariance=False)

    def update(self, maps: Tensor) -> None:
        self._moments.update(_vectors(maps))

    def result(self) -> Fitted:
        deviation = self._moments.covariance.sqrt()
        return Fitted({}, self._moments.mean.numpy(), deviation.numpy())


class _Codewords:
    """A dictionary of codewords, fitted on a sample of the places (pipeline.numerics.codewords).

    The sample is what one pass can leave to the many that Adam takes: places drawn evenly from all
    of them, as many as fit `CODEWORD_SAMPLE_BYTES`.
    """

    def __init__(self, config: FeatureConfig, channels: int) -> None:
        assert config.dictionary is not None
        self._dictionary = config.dictionary
        count = self._dictionary.codewords(channels)
        if count > LARGEST_NUMBER + 1:
            raise ConfigError(
                config.name,
                [
                    f"dictionary.multiple must give at most {LARGEST_NUMBER + 1} codewords, got "
                    f"{count} for {channels} channels"
                ],
            )
        self._count, self._kept = count, self._dictionary.kept(channels)
        self._sample = UniformSample(
            max(count, CODEWORD_SAMPLE_BYTES // (4 * channels)), channels, self._dictionary.seed
        )

    def update(self, maps: Tensor) -> None:
        self._sample.update(_vectors(maps))

    def result(self) -> Fitted:
        vectors = self._sample.vectors
        scale = vectors.square().mean().sqrt()
        scale = scale.where(scale > 0, 1.0)
        found = fit_dictionary(
            vectors / scale,
            self._count,
            self._kept,
            steps=self._dictionary.steps,
            seed=self._dictionary.seed,
        )
        constants = {
            "codewords": found.codewords,
            "bias": found.bias.reshape(1),
            "scale": scale.reshape(1),
            "kept": torch.tensor([self._kept]),
        }
        return Fitted({name: value.double().numpy() for name, value in constants.items()})


class _PrincipalComponents:
    """The directions of largest variance, largest first, and the mean.

    The sign of a direction is free: its largest entry is made positive, so that a fit gives one
    basis.
    """

    def __init__(self, config: FeatureConfig, channels: int) -> None:
        assert config.components is not None
        if config.components > channels:
            raise ConfigError(
                config.name,
                [f"components must be at most {channels} (channels), got {config.components}"],
            )
        self._components = config.components
        self._moments = StreamingMoments(channels, covariance=True)

    def update(self, maps: Tensor) -> None:
        self._moments.update(_vectors(maps))

    def result(self) -> Fitted:
        values, vectors = torch.linalg.eigh(self._moments.covariance)
        basis = vectors.T.flip(0)[: self._components]
        largest = basis.gather(1, basis.abs().argmax(dim=1, keepdim=True))
        basis = basis * torch.where(largest < 0, -1.0, 1.0)
        variance = values.flip(0)[: self._components].clamp(min=0)
        constants = {"basis": basis.numpy().copy(), "mean": self._moments.mean.numpy()}
        return Fitted(constants, np.zeros(self._components), variance.sqrt().numpy())


def _vectors(maps: Tensor) -> Tensor:
    """Return (B h w, C) of (B, C, h, w) maps."""
    return maps.movedim(1, -1).reshape(-1, maps.shape[1])


def _channel_mean(output: Tensor, grid: int) -> Tensor:
    return _pooled(output.mean(dim=1, keepdim=True), grid)


def _pooled(output: Tensor, grid: int) -> Tensor:
    height, width = output.shape[2:]
    return functional.adaptive_avg_pool2d(output, (min(grid, height), min(grid, width)))


def _as_it_is(maps: Tensor, constants: Constants) -> tuple[Tensor]:
    return (maps,)


def _codes(maps: Tensor, constants: Constants) -> tuple[Tensor]:
    basis, mean = (_like(constants[name], maps) for name in ("basis", "mean"))
    return (torch.einsum("bchw,kc->bkhw", maps - mean[None, :, None, None], basis),)


def _codeword_labels(maps: Tensor, constants: Constants) -> tuple[Tensor, Tensor]:
    """Return (B, 1, h, w) ids of the codewords most alike, and (B, M, 1, 1) means of all codes."""
    codewords, bias, scale = (_like(constants[n], maps) for n in ("codewords", "bias", "scale"))
    logits = similarity_logits(maps.movedim(1, -1) / scale, Dictionary(codewords, bias))
    code = sparse_code(logits, int(constants["kept"][0]))
    means = dense_code(code, len(codewords)).mean(dim=(1, 2))
    return code.ids[..., 0].unsqueeze(1), means[:, :, None, None]


def _like(values: npt.NDArray[np.float64], maps: Tensor) -> Tensor:
    return torch.from_numpy(values).to(maps.device, maps.dtype)


def _one_array(config: FeatureConfig, maps: Shape) -> tuple[ArrayForm]:
    return (ArrayForm((config.components or maps[0], *maps[1:]), config.dtype),)


def _ids_and_means(config: FeatureConfig, maps: Shape) -> tuple[ArrayForm, ArrayForm]:
    assert config.dictionary is not None
    codewords = config.dictionary.codewords(maps[0])
    return ArrayForm((1, *maps[1:]), "uint16"), ArrayForm((codewords, 1, 1), config.dtype)


@dataclass(frozen=True, kw_only=True)
class Reduction:
    """How a block's output becomes what is stored.

    Attributes:
        maps: ((B, C, H, W) float32, grid) -> (B, c, h, w), at most grid x grid places.
        arrays: (settings, (c, h, w) of the maps) -> the arrays in which it is stored, in the order
            of `FeatureConfig.array_names`.
        apply: (maps, constants) -> what is stored in each of them.
        fit: Makes the fit of the settings and the channels of the maps.
    """

    maps: Callable[[Tensor, int], Tensor]
    arrays: Callable[[FeatureConfig, Shape], tuple[ArrayForm, ...]] = _one_array
    apply: Callable[[Tensor, Constants], tuple[Tensor, ...]] = _as_it_is
    fit: Callable[[FeatureConfig, int], Fit] = _NothingFitted


REDUCTIONS: dict[str, Reduction] = {
    "channel_mean": Reduction(maps=_channel_mean),
    "pool": Reduction(maps=_pooled),
    "pca": Reduction(maps=_pooled, apply=_codes, fit=_PrincipalComponents),
    "codewords": Reduction(
        maps=_pooled, arrays=_ids_and_means, apply=_codeword_labels, fit=_Codewords
    ),
}


def block_maps(config: FeatureConfig, output: Tensor) -> Tensor:
    """Return the maps of a block's output.

    Args:
        config: Of the feature.
        output: (B, C, H, W) of a convolution, or (B, C) of a dense layer.

    Returns:
        (B, c, h, w) float32.

    Raises:
        ConfigError: If the output has another form.
    """
    if output.ndim == 2:
        output = output[:, :, None, None]
    if output.ndim != 4:
        raise ConfigError(
            config.name,
            [f"block {config.block!r} must return (B, C, H, W) or (B, C), got {_shape(output)}"],
        )
    return REDUCTIONS[config.reduce].maps(output.float(), config.grid)


def _shape(output: Tensor) -> tuple[Any, ...]:
    return ("B", *output.shape[1:])


def value_range(fitted: Fitted) -> npt.NDArray[np.float64]:
    """Return (2, c) the smallest value and the step of each channel of uint8.

    They span six standard deviations on either side of the mean. A channel that hardly moved in the
    fit may do so elsewhere, so its deviation counts as a part of the widest channel's at least.
    """
    widest = float(fitted.deviation.max(initial=0.0))
    deviation = np.maximum(fitted.deviation, LEAST_DEVIATION * widest or 1.0)
    smallest = fitted.mean - RANGE_DEVIATIONS * deviation
    return np.stack([smallest, 2 * RANGE_DEVIATIONS * deviation / LARGEST_CODE])
