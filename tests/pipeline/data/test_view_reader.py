from __future__ import annotations

import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.config import InputConfig
from pipeline.data.view_reader import ViewReader
from pipeline.data.views import mix, render
from storage_schemas.mixing import MixPools
from storage_schemas.view_recipe import Affine, Crop, Mix, ViewRecipe

GEOMETRY = ViewRecipe(seed=4, crop=Crop(scale=(0.5, 1.0)), flip=0.5, affine=Affine(degrees=10))
PLAIN = InputConfig(size=24, channels=3, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
KEYS = [f"image/{i}" for i in range(40)]
POOLS = MixPools(pool_of=np.arange(40) % 3)


class MemorySource:
    """Forty random images; counts what is loaded."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.images = {
            key: Image.fromarray(rng.integers(0, 256, (30, 36, 3), dtype=np.uint8)) for key in KEYS
        }
        self.loaded: Counter[str] = Counter()

    def load(self, key: str) -> Image.Image:
        self.loaded[key] += 1
        return self.images[key]


def reader(recipe: ViewRecipe, config: InputConfig = PLAIN) -> ViewReader:
    return ViewReader(MemorySource(), KEYS, recipe, config, POOLS)


def test_reads_what_render_renders_and_normalises():
    """A batch equals the render of its images, normalised as the network wants it."""
    config = InputConfig(size=24, channels=3, mean=(0.1, 0.2, 0.3), std=(0.5, 0.4, 0.3))
    rows, views = np.array([30, 2, 17]), np.array([0, 5, 1])
    images = [MemorySource().load(KEYS[row]) for row in rows]
    pixels = render(images, GEOMETRY.parameters(rows, views), size=24, channels=3)
    expected = (pixels - torch.tensor(config.mean).view(1, 3, 1, 1)) / torch.tensor(
        config.std
    ).view(1, 3, 1, 1)
    found = reader(GEOMETRY, config).read(rows, views)
    assert found.shape == (3, 3, 24, 24)
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("kind", [None, "mixup", "cutmix"])
def test_a_view_has_the_same_bits_in_any_batch(kind):
    """Teacher and student, who batch differently, see the same pixels, mixed or not."""
    recipe = GEOMETRY.model_copy(update={"mix": Mix(kind=kind) if kind else None})
    rng = np.random.default_rng(0)
    rows, views = rng.permutation(40), rng.integers(0, 6, 40)
    whole = reader(recipe).read(rows, views)
    for part in (np.array([5]), np.array([39, 0, 12]), np.arange(39, -1, -1)):
        assert torch.equal(reader(recipe).read(rows[part], views[part]), whole[part])


def test_each_distinct_row_is_decoded_once():
    """Several views of one image, and partners that are in the batch, cost one decode."""
    for recipe in (GEOMETRY, GEOMETRY.model_copy(update={"mix": Mix(kind="mixup")})):
        found = reader(recipe)
        rows, views = np.repeat(np.arange(40), 3), np.tile([0, 1, 2], 40)
        found.read(rows, views)
        assert set(found.source.loaded.values()) == {1}
        assert len(found.source.loaded) == 40


def test_views_of_one_image_differ():
    """Different views of a row are different pixels; the same view is the same."""
    found = reader(GEOMETRY).read(np.array([7, 7, 7]), np.array([0, 1, 0]))
    assert torch.equal(found[0], found[2])
    assert not torch.allclose(found[0], found[1], atol=0.05)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixing_uses_the_partner_s_own_view(kind):
    """The pixels are the mix of two unmixed renders, with the partner and weight reported."""
    recipe = GEOMETRY.model_copy(update={"mix": Mix(kind=kind, probability=0.7)})
    rows, views = np.arange(20), np.arange(20) % 4
    mixing = reader(recipe)
    partners, weights = mixing.mix_weights(rows, views)
    plain = reader(GEOMETRY)
    first, second = plain.read(rows, views), plain.read(partners, views)
    found = mixing.read(rows, views)
    mixed = partners != rows
    assert 0 < mixed.sum() < 20
    assert torch.equal(found[~mixed], first[~mixed])
    expected = mix(first[mixed], second[mixed], recipe.parameters(rows[mixed], views[mixed]))
    assert torch.equal(found[mixed], expected)
    assert np.all(weights[~mixed] == 1)
    assert weights.dtype == np.float32
    assert np.array_equal(POOLS.pool_of[partners], POOLS.pool_of[rows])


def test_partner_and_weight_are_the_same_whoever_asks():
    """A reader at another size, asked in another order, reports the same mixing."""
    recipe = GEOMETRY.model_copy(update={"mix": Mix(kind="cutmix")})
    rows, views = np.arange(30), np.arange(30) % 7
    partners, weights = reader(recipe).mix_weights(rows, views)
    student = reader(recipe, InputConfig(size=12, channels=1))
    other_partners, other_weights = student.mix_weights(rows[::-1], views[::-1])
    assert np.array_equal(other_partners[::-1], partners)
    assert np.array_equal(other_weights[::-1], weights)


def test_sizes_see_the_same_mix():
    """A mixed view at twice the size, averaged down, is the mixed view."""
    recipe = ViewRecipe(seed=2, mix=Mix(kind="cutmix"))
    rows, views = np.arange(10), np.zeros(10, np.int64)
    large_input = PLAIN.model_copy(update={"size": 48})
    large = torch.nn.functional.avg_pool2d(reader(recipe, large_input).read(rows, views), 2)
    difference = (large - reader(recipe).read(rows, views)).abs().mean((1, 2, 3))
    other = (large - reader(recipe).read(rows, views + 1)).abs().mean((1, 2, 3))
    assert difference.mean() < 0.5 * other.mean()


def test_a_recipe_without_mixing_mixes_nothing():
    """Without `mix`, partners are the rows themselves and all weights are 1."""
    rows = np.arange(5)
    partners, weights = reader(GEOMETRY).mix_weights(rows, np.zeros(5, np.int64))
    assert np.array_equal(partners, rows)
    assert np.array_equal(weights, np.ones(5))


def test_survives_pickling():
    """A loader worker's copy reads the same bits."""
    original = reader(GEOMETRY.model_copy(update={"mix": Mix(kind="mixup")}))
    rows, views = np.arange(6), np.arange(6)
    before = original.read(rows, views)
    assert torch.equal(pickle.loads(pickle.dumps(original)).read(rows, views), before)


def test_mixing_needs_pools_for_all_rows():
    """A recipe that mixes is refused without pools, or with pools of another manifest."""
    recipe = ViewRecipe(mix=Mix(kind="mixup"))
    with pytest.raises(ValueError, match="pools must be given"):
        ViewReader(MemorySource(), KEYS, recipe, PLAIN)
    with pytest.raises(ValueError, match="pools must cover"):
        ViewReader(MemorySource(), KEYS, recipe, PLAIN, MixPools(pool_of=np.zeros(3, np.int64)))


def test_runs_of_decoded_images_change_no_bit(monkeypatch):
    """Large images are decoded a few at a time, each once, to the same views."""
    rows, views = np.repeat(np.arange(20)[::-1], 2), np.tile([0, 1], 20)
    whole = reader(GEOMETRY).read(rows, views)
    monkeypatch.setattr("pipeline.data.view_reader._PIXELS_AT_ONCE", 3 * 30 * 36)
    parts = reader(GEOMETRY)
    assert torch.equal(parts.read(rows, views), whole)
    assert set(parts.source.loaded.values()) == {1}
