from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.data.views import mix, render
from storage_schemas.errors import DataError
from storage_schemas.view_recipe import Affine, Blur, Color, Crop, Mix, Noise, ViewRecipe

FULL = ViewRecipe(
    seed=1,
    crop=Crop(scale=(0.3, 1.0)),
    flip=0.5,
    affine=Affine(degrees=20, translate=0.1, scale=(0.9, 1.1), shear=5),
    color=Color(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),
    blur=Blur(probability=0.7, sigma=(0.005, 0.05)),
    noise=Noise(probability=0.7, std=0.1),
)


def photo(width: int = 64, height: int = 64, *, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Smooth random colours, so that sizes can be compared."""
    rng = np.random.default_rng(seed)
    shape = (6, 6, 3) if mode == "RGB" else (6, 6)
    coarse = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def view(
    image: Image.Image, recipe: ViewRecipe, *, row: int = 0, size: int = 32, channels: int = 3
) -> torch.Tensor:
    parameters = recipe.parameters(np.array([row]), np.array([0]))
    return render([image], parameters, size=size, channels=channels)[0]


def as_array(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) / 255


# --- independence --------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [40, 240])
@pytest.mark.parametrize("size", [17, 32, 96])
@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_do_not_depend_on_the_batch(side, size, channels):
    """A view has the same bits alone, in any batch of gray and colour images, in any order."""
    images = [photo(side + i, side + 10, mode="RGB" if i % 3 else "L", seed=i) for i in range(12)]
    rows, views = np.arange(12), np.arange(12) % 4
    whole = render(images, FULL.parameters(rows, views), size=size, channels=channels)
    for part in ([0], [1], [11, 3, 7], list(range(11, -1, -1))):
        chosen = FULL.parameters(rows[part], views[part])
        found = render([images[i] for i in part], chosen, size=size, channels=channels)
        assert torch.equal(found, whole[part])


def test_pixels_do_not_depend_on_the_number_of_threads():
    """One thread and two give the same bits."""
    images = [photo(64 * i, 64 * i, seed=i) for i in range(1, 5)]
    parameters = FULL.parameters(np.arange(4), np.zeros(4, np.int64))
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(render(images, parameters, size=200, channels=3))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])


def test_chunks_change_no_bit(monkeypatch):
    """A batch cut into chunks, as large ones are, equals the whole."""
    images = [photo(seed=i) for i in range(7)]
    parameters = FULL.parameters(np.arange(7), np.zeros(7, np.int64))
    whole = render(images, parameters, size=32, channels=3)
    monkeypatch.setattr("pipeline.data.views._CHUNK", 3 * 32 * 32)
    monkeypatch.setattr("pipeline.data.photometry._BLUR_CHUNK", 1)
    monkeypatch.setattr("pipeline.data.photometry._NOISE_CHUNK", 2)
    assert torch.equal(render(images, parameters, size=32, channels=3), whole)


@pytest.mark.parametrize("side", [40, 300])
def test_the_gray_path_equals_the_colour_path(side):
    """A gray image in mode L gives what the same image in mode RGB gives."""
    gray = [photo(side + 8, side, mode="L", seed=i) for i in range(8)]
    parameters = FULL.parameters(np.arange(8), np.zeros(8, np.int64))
    for channels in (1, 3):
        short = render(gray, parameters, size=32, channels=channels)
        colour = [image.convert("RGB") for image in gray]
        long = render(colour, parameters, size=32, channels=channels)
        assert torch.allclose(short, long, atol=1e-4)


def test_the_range_is_kept():
    """All operations at once give finite values in [0, 1]."""
    images = [photo(seed=i) for i in range(16)]
    recipe = FULL.model_copy(update={"color": Color(brightness=2, contrast=2, saturation=2)})
    found = render(images, recipe.parameters(np.arange(16), np.zeros(16, int)), size=32, channels=3)
    assert found.dtype == torch.float32
    assert found.min() >= 0
    assert found.max() <= 1


# --- geometry ------------------------------------------------------------------------------------


def test_evaluation_view_is_the_centred_square():
    """Without augmentation and at its own size, a square image passes untouched."""
    image = photo(32, 32)
    assert torch.equal(view(image, ViewRecipe()), as_array(image))
    wide = photo(64, 32)
    assert torch.equal(view(wide, ViewRecipe()), as_array(wide.crop((16, 0, 48, 32))))


def test_a_small_crop_shows_the_box_with_its_fractions():
    """The rendered crop is Pillow's resize of the parameters' box."""
    image, recipe = photo(90, 70), ViewRecipe(crop=Crop(scale=(0.2, 0.3)))
    box = recipe.parameters(np.array([3]), np.array([0])).crop_box(0, 90, 70)
    expected = image.resize((32, 32), Image.Resampling.BILINEAR, box=box)
    assert torch.equal(view(image, recipe, row=3), as_array(expected))


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("size", [32, 224, 400])
def test_a_large_crop_shows_the_box_in_whole_pixels(mode, size):
    """It is Pillow's resize of the rounded box, up to one level, also where it is magnified."""
    image, recipe = photo(500, 375, mode=mode), ViewRecipe(crop=Crop(scale=(0.2, 0.9)))
    parameters = recipe.parameters(np.arange(8), np.zeros(8, np.int64))
    found = render([image] * 8, parameters, size=size, channels=3)
    for i in range(8):
        box = tuple(round(edge) for edge in parameters.crop_box(i, 500, 375))
        expected = as_array(image.crop(box).resize((size, size), Image.Resampling.BILINEAR))
        assert torch.allclose(found[i], expected, atol=1.01 / 255)


def test_large_crops_change_with_nothing_but_their_box():
    """One image in several views gives each what it gives alone."""
    image, recipe = photo(500, 375), ViewRecipe(crop=Crop(scale=(0.02, 1.0)))
    parameters = recipe.parameters(np.arange(8), np.zeros(8, np.int64))
    together = render([image] * 8, parameters, size=64, channels=3)
    alone = [view(image, recipe, row=i, size=64) for i in range(8)]
    assert torch.equal(together, torch.stack(alone))


def test_flip_mirrors():
    """With probability 1 the view is the mirror image, alone and within the affine map."""
    image = photo(32, 32)
    plain = view(image, ViewRecipe())
    assert torch.equal(view(image, ViewRecipe(flip=1.0)), plain.flip(-1))
    nearly_still = Affine(scale=(1.0001, 1.0002))
    warped = view(image, ViewRecipe(flip=1.0, affine=nearly_still))
    assert torch.allclose(warped, plain.flip(-1), atol=5e-3)


def test_a_quarter_turn_is_clockwise():
    """Positive angles turn the image clockwise; 90 degrees is exact up to interpolation."""
    image = photo(32, 32)
    parameters = ViewRecipe(affine=Affine(degrees=1)).parameters(np.array([0]), np.array([0]))
    parameters.angle[0] = 90.0
    found = render([image], parameters, size=32, channels=3)[0]
    expected = as_array(image.transpose(Image.Transpose.ROTATE_270))
    assert torch.allclose(found, expected, atol=1e-4)


def test_translation_moves_right_and_down():
    """A shift by a quarter of the side moves the pixels by a quarter of the size."""
    image = photo(32, 32)
    parameters = ViewRecipe(affine=Affine(translate=0.1)).parameters(np.array([0]), np.array([0]))
    parameters.translate_x[0], parameters.translate_y[0] = 0.25, -0.125
    found = render([image], parameters, size=32, channels=3)[0]
    assert torch.allclose(found[:, :28, 8:], as_array(image)[:, 4:, :24], atol=1e-5)


def test_zoom_magnifies():
    """Magnified twice, the view shows the inner half."""
    image = photo(64, 64)
    parameters = ViewRecipe(affine=Affine(degrees=1)).parameters(np.array([0]), np.array([0]))
    parameters.angle[0], parameters.zoom[0] = 0.0, 2.0
    found = render([image], parameters, size=64, channels=3)[0]
    inner = image.crop((16, 16, 48, 48)).resize((64, 64), Image.Resampling.BILINEAR)
    assert torch.allclose(found[:, 4:-4, 4:-4], as_array(inner)[:, 4:-4, 4:-4], atol=0.02)


@pytest.mark.parametrize(
    "recipe",
    [
        ViewRecipe(crop=Crop(scale=(0.3, 0.9))),
        ViewRecipe(flip=0.5, affine=FULL.affine),
        ViewRecipe(color=FULL.color),
        ViewRecipe(blur=Blur(probability=1.0, sigma=(0.03, 0.06))),
        ViewRecipe(noise=Noise(probability=1.0, std=0.1)),
        FULL,
    ],
    ids=["crop", "affine", "color", "blur", "noise", "all"],
)
def test_sizes_see_the_same_view(recipe):
    """A 64-pixel render, averaged down, is the 32-pixel render; another view is not."""
    image = photo(128, 128)
    parameters = recipe.parameters(np.arange(8), np.zeros(8, np.int64))
    large = render([image] * 8, parameters, size=64, channels=3)
    small = render([image] * 8, parameters, size=32, channels=3)
    averaged = torch.nn.functional.avg_pool2d(large, 2)
    difference = (averaged - small).abs().mean((1, 2, 3))
    assert difference.max() < 0.012
    others = (averaged - small.roll(1, 0)).abs().mean((1, 2, 3))
    assert others.mean() > 3 * difference.mean()


# --- mixing --------------------------------------------------------------------------------------


def test_mixup_is_the_weighted_mean():
    """Pixels are weight * first + (1 - weight) * second."""
    parameters = ViewRecipe(mix=Mix(kind="mixup")).parameters(np.arange(4), np.zeros(4, int))
    first, second = torch.rand(4, 3, 8, 8), torch.rand(4, 3, 8, 8)
    weight = torch.from_numpy(parameters.mix_weight).float()[:, None, None, None]
    expected = weight * first + (1 - weight) * second
    assert torch.allclose(mix(first, second, parameters), expected, atol=1e-6)


@pytest.mark.parametrize("size", [7, 32, 224])
def test_cutmix_shows_the_partner_in_the_box_only(size):
    """The partner's share of the pixels is 1 - weight at every size, inside the box only."""
    parameters = ViewRecipe(mix=Mix(kind="cutmix")).parameters(np.arange(6), np.zeros(6, int))
    found = mix(torch.zeros(6, 1, size, size), torch.ones(6, 1, size, size), parameters)
    share = found.double().mean((1, 2, 3)).numpy()
    assert np.allclose(share, 1 - parameters.mix_weight, atol=1e-6)
    centres = (np.arange(size) + 0.5) / size
    for i, (left, top, right, bottom) in enumerate(parameters.mix_box):
        half = 0.5 / size
        columns = (centres > left - half) & (centres < right + half)
        lines = (centres > top - half) & (centres < bottom + half)
        outside = found[i, 0].numpy()[~(lines[:, None] & columns)]
        assert not outside.any()


# --- refusals ------------------------------------------------------------------------------------


def test_a_foreign_mode_is_refused():
    """An image that is neither gray nor RGB is named, not guessed at."""
    with pytest.raises(DataError, match="RGBA"):
        view(Image.new("RGBA", (8, 8)), ViewRecipe())


def test_counts_must_agree():
    """As many images as parameters."""
    parameters = ViewRecipe().parameters(np.arange(2), np.zeros(2, int))
    with pytest.raises(ValueError, match="as many"):
        render([photo()], parameters, size=8, channels=3)
