from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch

from pipeline.data import photometry
from storage_schemas.view_recipe import Noise, ViewRecipe


def parameters_with(**values: float):
    found = ViewRecipe().parameters(np.array([0]), np.array([0]))
    for name, value in values.items():
        getattr(found, name)[0] = value
    return found


def test_brightness_scales():
    """Brightness multiplies and clips."""
    pixels = torch.rand(1, 3, 8, 8)
    found = photometry.adjust_tone(pixels, parameters_with(brightness=1.5))
    assert torch.allclose(found, (pixels * 1.5).clamp(0, 1), atol=1e-6)


def test_contrast_moves_away_from_the_mean():
    """Contrast 0 leaves the mean luma everywhere; 0.5 halves the deviation from it."""
    pixels = torch.rand(1, 3, 8, 8)
    mean = photometry.luma(pixels).mean()
    flat = photometry.adjust_tone(pixels, parameters_with(contrast=0.0))
    assert torch.allclose(flat, mean.expand_as(flat), atol=1e-5)
    half = photometry.adjust_tone(pixels, parameters_with(contrast=0.5))
    assert torch.allclose(half - mean, (pixels - mean) / 2, atol=1e-5)


def test_saturation_moves_away_from_gray():
    """Saturation 0 gives luma in all channels; 0.5 halves the way to it."""
    pixels = torch.rand(1, 3, 8, 8)
    gray = photometry.luma(pixels)
    found = photometry.adjust_chroma(pixels, parameters_with(saturation=0.0))
    assert torch.allclose(found, gray.expand_as(found), atol=1e-5)
    half = photometry.adjust_chroma(pixels, parameters_with(saturation=0.5))
    assert torch.allclose(half, (pixels + gray) / 2, atol=1e-5)


def test_hue_turns_the_colours_and_keeps_luma():
    """A third of a turn moves the hue about a third of the circle; gray and luma stay."""
    pixels = torch.tensor([0.55, 0.45, 0.45]).view(1, 3, 1, 1)
    found = photometry.adjust_chroma(pixels, parameters_with(hue=1 / 3))
    hues = [colorsys.rgb_to_hsv(*p.flatten().tolist())[0] for p in (pixels, found)]
    turn = (hues[1] - hues[0]) % 1
    assert min(turn, 1 - turn) == pytest.approx(1 / 3, abs=0.08)
    assert torch.allclose(photometry.luma(found), photometry.luma(pixels), atol=1e-5)
    gray = torch.full((1, 3, 2, 2), 0.3)
    assert torch.allclose(photometry.adjust_chroma(gray, parameters_with(hue=0.2)), gray, atol=1e-5)
    there = photometry.adjust_chroma(pixels, parameters_with(hue=0.1))
    back = photometry.adjust_chroma(there, parameters_with(hue=-0.1))
    assert torch.allclose(back, pixels, atol=1e-5)


@pytest.mark.parametrize("sigma", [0.5, 1.3, 3.0])
def test_blur_is_a_gaussian(sigma):
    """The response to one lit pixel sums to 1 and has the asked variance along both axes."""
    pixels = torch.zeros(1, 1, 41, 41)
    pixels[0, 0, 20, 20] = 1
    found = photometry.blur(pixels, parameters_with(blur_sigma=sigma / 41))[0, 0].double()
    offset = torch.arange(-20, 21, dtype=torch.float64)
    assert found.sum().item() == pytest.approx(1, abs=1e-5)
    for axis in (0, 1):
        profile = found.sum(axis)
        taps = torch.exp(-0.5 * (offset / sigma) ** 2) * (offset.abs() <= np.ceil(3 * sigma))
        assert torch.allclose(profile, taps / taps.sum(), atol=1e-6)


def test_blur_keeps_a_flat_image():
    """Edges are repeated, not darkened."""
    pixels = torch.full((1, 3, 16, 16), 0.7)
    found = photometry.blur(pixels, parameters_with(blur_sigma=0.2))
    assert torch.allclose(found, pixels, atol=1e-6)


def test_noise_has_the_asked_strength_and_is_shared_by_channels():
    """At 64 pixels the noise has mean 0 and the asked deviation, equal in all channels."""
    recipe = ViewRecipe(noise=Noise(probability=1.0, std=0.1))
    parameters = recipe.parameters(np.arange(20), np.zeros(20, np.int64))
    found = photometry.add_noise(torch.full((20, 3, 64, 64), 0.5), parameters) - 0.5
    assert abs(found.mean().item()) < 1e-3
    assert found.std().item() == pytest.approx(0.1, rel=0.01)
    assert torch.equal(found[:, 0], found[:, 2])
    pairs = torch.corrcoef(found[:, 0].flatten(1)) - torch.eye(20)
    assert pairs.abs().max() < 0.1


def test_noise_field_is_white():
    """Neighbouring values are uncorrelated and the fourth moment is near that of a normal."""
    field = photometry.noise_field(np.array([[1, 2]], np.uint32))[0].astype(np.float64)
    assert abs(field.mean()) < 0.06
    assert abs(field.var() - 1) < 0.08
    for shifted in (np.roll(field, 1, 0), np.roll(field, 1, 1)):
        assert abs((field * shifted).mean()) < 0.06
    assert 2.5 < (field**4).mean() / field.var() ** 2 < 3.0


def test_noise_field_bits_are_pinned():
    """The first values of one field are these, exactly."""
    field = photometry.noise_field(np.array([[1, 2]], np.uint32))
    sums = np.round(field[0, 0, :6].astype(np.float64) * np.sqrt(21845)) + 510
    assert sums.tolist() == [437.0, 250.0, 367.0, 691.0, 722.0, 436.0]
