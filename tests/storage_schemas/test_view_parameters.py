from __future__ import annotations

import numpy as np
import pytest

from storage_schemas.view_parameters import ViewParameters
from storage_schemas.view_recipe import Affine, Crop, ViewRecipe

FULL = ViewRecipe(
    seed=7,
    crop=Crop(scale=(0.3, 1.0)),
    flip=0.5,
    affine=Affine(degrees=15, translate=0.1, scale=(0.9, 1.1), shear=5),
)


def drawn(recipe: ViewRecipe, row: int, view: int) -> ViewParameters:
    return recipe.parameters(np.array([row]), np.array([view]))


def test_crop_box_has_the_drawn_area_and_ratio():
    """Where all ratios fit, area and aspect ratio are as asked, to within a pixel's 256th."""
    recipe = ViewRecipe(crop=Crop(scale=(0.1, 0.5), ratio=(0.75, 4 / 3)))
    parameters = recipe.parameters(np.arange(2000), np.zeros(2000, np.int64))
    box = parameters.crop_boxes(np.full(2000, 640), np.full(2000, 480))
    width, height = box[:, 2] - box[:, 0], box[:, 3] - box[:, 1]
    assert np.allclose(width * height / (640 * 480), parameters.crop_area, atol=1e-4)
    ratio = width / height
    assert ratio.min() > 0.7495
    assert ratio.max() < 1.334
    assert abs(np.log(ratio).mean()) < 0.02
    assert np.array_equal(box * 256, np.round(box * 256))


def test_crop_boxes_are_spread_over_the_image():
    """Small crops reach all four edges, and their centres average to the image's centre."""
    recipe = ViewRecipe(crop=Crop(scale=(0.05, 0.1)))
    box = recipe.parameters(np.arange(4000), np.zeros(4000, np.int64)).crop_boxes(
        np.full(4000, 100), np.full(4000, 100)
    )
    assert box[:, :2].min() < 1
    assert box[:, 2:].max() > 99
    assert np.allclose((box[:, :2] + box[:, 2:]).mean(0) / 2, 50, atol=2)


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [(1000, 10, (4 / 3 * 10, 10)), (10, 1000, (10, 10 / 0.75)), (1, 1, (1, 1))],
)
def test_crop_of_an_extreme_image_is_the_largest_of_the_nearest_ratio(width, height, expected):
    """Where no ratio fits, the crop is the largest box of the nearest allowed ratio."""
    parameters = drawn(ViewRecipe(crop=Crop(scale=(0.8, 1.0))), 5, 0)
    left, top, right, bottom = parameters.crop_box(0, width, height)
    assert right - left == pytest.approx(expected[0], abs=0.005)
    assert bottom - top == pytest.approx(expected[1], abs=0.005)


def test_crop_box_scales_with_the_image():
    """The same view of the same image at twice the size shows the same part."""
    parameters = drawn(FULL, 99, 1)
    small, large = parameters.crop_box(0, 300, 200), parameters.crop_box(0, 600, 400)
    assert np.allclose(np.array(small) * 2, large, atol=0.01)


def test_sampling_matrices_invert_the_forward_map():
    """The closed form equals the inverse of move * turn * zoom * shear * mirror."""
    parameters = FULL.parameters(np.arange(20), np.zeros(20, np.int64))
    for i, found in enumerate(parameters.sampling_matrices()):
        angle, shear = np.deg2rad(parameters.angle[i]), np.deg2rad(parameters.shear[i])
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        slant = np.array([[1, np.tan(shear)], [0, 1]])
        mirror = np.diag([-1.0 if parameters.flip[i] else 1.0, 1.0])
        forward = np.eye(3)
        forward[:2, :2] = turn * parameters.zoom[i] @ slant @ mirror
        forward[:2, 2] = 2 * parameters.translate_x[i], 2 * parameters.translate_y[i]
        assert np.allclose(found, np.linalg.inv(forward)[:2], atol=1e-12)
