from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from storage_schemas.view_parameters import ViewParameters
from storage_schemas.view_recipe import (
    Affine,
    Blur,
    Color,
    Crop,
    Mix,
    Noise,
    ViewRecipe,
)

FULL = ViewRecipe(
    seed=7,
    crop=Crop(scale=(0.3, 1.0), ratio=(0.75, 4 / 3)),
    flip=0.5,
    affine=Affine(degrees=15, translate=0.1, scale=(0.9, 1.1), shear=5),
    color=Color(brightness=0.4, contrast=0.3, saturation=0.2, hue=0.1),
    blur=Blur(probability=0.5, sigma=(0.01, 0.05)),
    noise=Noise(probability=0.5, std=0.1),
    mix=Mix(kind="mixup", alpha=0.4),
)


def arrays(parameters: ViewParameters) -> dict[str, np.ndarray]:
    names = [f.name for f in dataclasses.fields(parameters) if f.name != "crop_ratio"]
    return {name: getattr(parameters, name) for name in names}


def drawn(recipe: ViewRecipe, row: int, view: int) -> ViewParameters:
    return recipe.parameters(np.array([row]), np.array([view]))


# --- pinned vectors: a change here is a change of every stored label's view ----------------------

PINNED = {
    "crop_area": [0.9682159423828125, 0.7792816162109375, 0.848785400390625],
    "crop_aspect": [0.750152587890625, 0.788543701171875, 0.322418212890625],
    "crop_x": [0.1141815185546875, 0.199859619140625, 0.8998870849609375],
    "crop_y": [0.085662841796875, 0.3612213134765625, 0.0377655029296875],
    "flip": [False, True, False],
    "angle": [-1.650299072265625, -3.878448486328125, -14.081863403320312],
    "translate_x": [-0.0540771484375, -0.0204315185546875, 0.0302734375],
    "translate_y": [-0.06640625, 0.014862060546875, 0.0020294189453125],
    "zoom": [0.9424285888671875, 0.9134979248046875, 0.965545654296875],
    "shear": [2.86273193359375, -3.6636962890625, -3.051177978515625],
    "brightness": [0.66107177734375, 0.710174560546875, 1.3085174560546875],
    "contrast": [0.9499359130859375, 1.2353363037109375, 1.2539215087890625],
    "saturation": [1.0650634765625, 0.945068359375, 0.9293212890625],
    "hue": [-0.0093841552734375, 0.035675048828125, -0.005401611328125],
    "blur_sigma": [0.0499114990234375, 0.0, 0.0],
    "noise_std": [0.1, 0.0, 0.1],
    "noise_key": [[3374592829, 37506411], [3710307144, 3124514087], [1124631990, 1207622710]],
    "mixed": [True, True, True],
    "mix_box": [[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]],
    "mix_weight": [0.6972198486328125, 0.68389892578125, 0.1031036376953125],
    "mix_word": [2437888329, 1072682638, 2710492653],
}


def test_pinned_parameters():
    """The parameters of three views are these numbers, exactly, on every machine."""
    parameters = FULL.parameters(np.array([0, 12345, 2**33 + 5]), np.array([0, 3, 70000]))
    found = {name: values.tolist() for name, values in arrays(parameters).items()}
    assert found == PINNED


def test_pinned_cutmix_and_boxes():
    """The cutmix box and the crop boxes of one view are these numbers, exactly."""
    recipe = FULL.model_copy(update={"mix": Mix(kind="cutmix", alpha=1.0)})
    parameters = drawn(recipe, 12345, 3)
    assert parameters.mix_box[0].tolist() == [0.0, 0.4407806396484375, 0.4113616943359375, 1.0]
    assert parameters.mix_weight[0] == 0.7699585764203221
    assert parameters.crop_box(0, 32, 32) == (0.328125, 2.0625, 30.68359375, 28.3515625)
    assert parameters.crop_box(0, 500, 375) == (
        14.01171875,
        12.68359375,
        443.91015625,
        352.56640625,
    )


def test_pinned_digest():
    """The digest of a recipe is part of every store's fingerprint and must not drift."""
    assert ViewRecipe().digest == (
        "b60f56d141ee8905eedfa0d330c0a738f34b68fbe244d7de145bf6b618bba75c"
    )


# --- the recipe ----------------------------------------------------------------------------------


def test_round_trip_through_json():
    """A recipe read back from its JSON is equal and has the same digest."""
    again = ViewRecipe.model_validate_json(FULL.model_dump_json())
    assert again == FULL
    assert again.digest == FULL.digest


@pytest.mark.parametrize(
    "update", [{"seed": 8}, {"flip": 0.25}, {"crop": None}, {"mix": None}, {"count": 5}]
)
def test_digest_sees_every_setting(update):
    """A changed setting changes the digest, also on a copy of a recipe that was asked before."""
    before = FULL.digest
    assert FULL.model_copy(update=update).digest != before


@pytest.mark.parametrize(
    "wrong",
    [
        {"count": 0},
        {"count": 65536},
        {"seed": -1},
        {"flip": 1.5},
        {"crop": {"scale": [0.9, 0.1]}},
        {"crop": {"scale": [0.0, 1.0]}},
        {"crop": {"ratio": [0.5, float("inf")]}},
        {"affine": {"degrees": 181}},
        {"affine": {"scale": [0.0, 1.0]}},
        {"color": {"hue": 0.6}},
        {"blur": {"sigma": [0.1, 0.01]}},
        {"noise": {"std": float("nan")}},
        {"mix": {"kind": "cutout"}},
        {"mix": {"kind": "mixup", "alpha": 0}},
        {"rotate": 3},
    ],
)
def test_bounds_are_enforced(wrong):
    """Values out of bounds, reversed ranges and unknown keys are refused."""
    with pytest.raises(ValidationError):
        ViewRecipe.model_validate(wrong)


@pytest.mark.parametrize(
    ("rows", "views"), [([-1], [0]), ([0], [-1]), ([0], [2**32]), ([0, 1], [0]), ([[0]], [[0]])]
)
def test_impossible_numbers_are_refused(rows, views):
    """Negative or too large numbers and unequal shapes raise instead of wrapping around."""
    with pytest.raises(ValueError, match="rows"):
        FULL.parameters(np.array(rows), np.array(views))


def test_evaluation_recipe_changes_nothing():
    """The evaluation view is the largest centred square and touches no pixel value."""
    recipe = ViewRecipe.evaluation_recipe()
    assert recipe.count == 1
    parameters = drawn(recipe, 3, 0)
    assert parameters.crop_box(0, 50, 30) == (10.0, 0.0, 40.0, 30.0)
    assert parameters.crop_box(0, 30, 51) == (0.0, 10.5, 30.0, 40.5)
    assert parameters.sampling_matrices()[0].tolist() == [[1, 0, 0], [0, 1, 0]]
    neutral = {"zoom": 1, "brightness": 1, "contrast": 1, "saturation": 1, "mix_weight": 1}
    for name in ("hue", "blur_sigma", "noise_std", "flip", "mixed", *neutral):
        assert getattr(parameters, name)[0] == neutral.get(name, 0), name


# --- independence --------------------------------------------------------------------------------


def test_parameters_do_not_depend_on_the_batch():
    """A (row, view) has the same parameters alone, in a batch, and in another order."""
    rng = np.random.default_rng(0)
    rows, views = rng.integers(0, 2**40, 200), rng.integers(0, 9, 200)
    together = arrays(FULL.parameters(rows, views))
    reversed_batch = arrays(FULL.parameters(rows[::-1], views[::-1]))
    for i in (0, 17, 199):
        alone = arrays(drawn(FULL, int(rows[i]), int(views[i])))
        for name, values in alone.items():
            assert np.array_equal(values[0], together[name][i]), name
            assert np.array_equal(values[0], reversed_batch[name][199 - i]), name


@pytest.mark.parametrize("operation", ["crop", "flip", "affine", "color", "blur", "noise", "mix"])
def test_an_added_operation_changes_no_other(operation):
    """Each parameter has its own bits: removing one operation leaves all others as they were."""
    owned = {
        "crop": {"crop_area", "crop_aspect", "crop_x", "crop_y"},
        "flip": {"flip"},
        "affine": {"angle", "translate_x", "translate_y", "zoom", "shear"},
        "color": {"brightness", "contrast", "saturation", "hue"},
        "blur": {"blur_sigma"},
        "noise": {"noise_std"},
        "mix": {"mixed", "mix_weight"},
    }[operation]
    rows, views = np.arange(64), np.arange(64) % 5
    neutral = 0.0 if operation == "flip" else None
    without = FULL.model_copy(update={operation: neutral}).parameters(rows, views)
    before, after = arrays(FULL.parameters(rows, views)), arrays(without)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == owned


def test_parameters_are_uncorrelated():
    """No two parameters of a view, and no two views or rows, share their randomness."""
    rows, views = np.repeat(np.arange(2000), 2), np.tile([0, 1], 2000)
    found = arrays(FULL.parameters(rows, views))
    names = [
        "crop_area", "crop_aspect", "crop_x", "crop_y", "flip", "angle", "translate_x",
        "translate_y", "zoom", "shear", "brightness", "contrast", "saturation", "hue",
        "blur_sigma", "noise_std", "mix_weight", "mix_word",
    ]  # fmt: skip
    table = np.stack([found[name].astype(np.float64) for name in names])
    correlation = np.corrcoef(table) - np.eye(len(names))
    assert np.abs(correlation).max() < 5 / math.sqrt(table.shape[1])
    neighbours = [np.corrcoef(line[::2], line[1::2])[0, 1] for line in table]
    assert np.abs(neighbours).max() < 5 / math.sqrt(2000)


# --- bounds --------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**64 - 1),
    row=st.integers(0, 2**63 - 1),
    view=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(["mixup", "cutmix"]),
    alpha=st.floats(0.05, 16),
    width=st.integers(1, 5000),
    height=st.integers(1, 5000),
)
def test_parameters_stay_in_bounds(seed, row, view, kind, alpha, width, height):
    """For any seed, row, view and image size, all parameters lie within the recipe's bounds."""
    recipe = FULL.model_copy(update={"seed": seed, "mix": Mix(kind=kind, alpha=alpha)})
    parameters = drawn(recipe, row, view)
    bounds = {
        "crop_area": (0.3, 1.0),
        "crop_aspect": (0, 1),
        "crop_x": (0, 1),
        "crop_y": (0, 1),
        "angle": (-15, 15),
        "translate_x": (-0.1, 0.1),
        "translate_y": (-0.1, 0.1),
        "zoom": (0.9, 1.1),
        "shear": (-5, 5),
        "brightness": (0.6, 1.4),
        "contrast": (0.7, 1.3),
        "saturation": (0.8, 1.2),
        "hue": (-0.1, 0.1),
        "mix_weight": (0, 1),
    }
    for name, (low, high) in bounds.items():
        assert low <= getattr(parameters, name)[0] <= high, name
    assert parameters.blur_sigma[0] == 0 or 0.01 <= parameters.blur_sigma[0] <= 0.05
    assert parameters.noise_std[0] in (0.0, 0.1)
    left, top, right, bottom = parameters.mix_box[0]
    assert 0 <= left <= right <= 1
    assert 0 <= top <= bottom <= 1
    left, top, right, bottom = parameters.crop_box(0, width, height)
    assert 0 <= left < left + 1 <= right <= width
    assert 0 <= top < top + 1 <= bottom <= height


def test_values_lie_on_the_grid():
    """Drawn values are multiples of 2^-16, so a last bit of `pow` cannot change them."""
    parameters = FULL.parameters(np.arange(500), np.zeros(500, np.int64))
    for name in ("crop_area", "crop_x", "angle", "zoom", "hue", "blur_sigma", "mix_weight"):
        values = getattr(parameters, name)
        bounds = {0.9, 1.1, -0.1, 0.1, 0.01, 0.05, 0.3}
        off = [v for v in (values * 65536).tolist() if v % 1 and v / 65536 not in bounds]
        assert off == [], name


def test_flip_blur_and_noise_come_as_often_as_asked():
    """The shares of flipped, blurred and noisy views are their probabilities."""
    recipe = ViewRecipe(flip=0.25, blur=Blur(probability=0.5), noise=Noise(probability=0.75))
    found = recipe.parameters(np.arange(10_000), np.zeros(10_000, np.int64))
    assert abs(found.flip.mean() - 0.25) < 0.02
    assert abs((found.blur_sigma > 0).mean() - 0.5) < 0.02
    assert abs((found.noise_std > 0).mean() - 0.75) < 0.02
    never = ViewRecipe(flip=0.0).parameters(np.arange(10_000), np.zeros(10_000, np.int64))
    always = ViewRecipe(flip=1.0).parameters(np.arange(10_000), np.zeros(10_000, np.int64))
    assert not never.flip.any()
    assert always.flip.all()
