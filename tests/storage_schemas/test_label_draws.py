"""The random bits of sampled labels: pinned, found by (row, view, draw), shared with none."""

from __future__ import annotations

import numpy as np

from storage_schemas.label_draws import FIRST_BLOCK, draw_uniforms
from storage_schemas.philox import philox4x32
from storage_schemas.view_recipe import _BLOCKS

ROWS = np.array([0, 1, 2**40 + 3])
PINNED = [
    ["0x1.390cfbc21980dp-1", "0x1.90145e73bb9aep-2", "0x1.3772eeae67320p-6"],
    ["0x1.930da419a6570p-5", "0x1.d1c5bf399ae78p-4", "0x1.d0deb0ab50395p-1"],
    ["0x1.e077ddb42ede0p-6", "0x1.b16315d69c347p-1", "0x1.479ba36e262e6p-2"],
]


def test_the_uniforms_are_the_pinned_ones():
    """Seed 7, view 2: the first three draws of three rows never change."""
    found = draw_uniforms(7, ROWS, 2, 3)
    assert [[value.hex() for value in row] for row in found.tolist()] == PINNED


def test_a_draw_follows_from_its_philox_block():
    """Draw 3 of a row is the second half of block 2^31 + 1, computed here in whole numbers."""
    words = [int(word) for word in philox4x32((3, 2**8, 2, FIRST_BLOCK + 1), (7, 0))]
    whole = (words[3] << 32 | words[2]) >> 12
    assert draw_uniforms(7, ROWS, 2, 4)[2, 3] == (whole + 0.5) / 2**52


def test_draws_do_not_depend_on_their_number_or_batch():
    """A draw is the same among few or many others, alone or in a batch; none is twice."""
    many = draw_uniforms(7, ROWS, 2, 9)
    np.testing.assert_array_equal(draw_uniforms(7, ROWS[1:2], 2, 4), many[1:2, :4])
    others = [draw_uniforms(8, ROWS, 2, 9), draw_uniforms(7, ROWS, 3, 9), many]
    assert len(np.unique(np.stack(others))) == 3 * many.size
    assert draw_uniforms(7, ROWS[:0], 2, 3).shape == (0, 3)


def test_views_use_none_of_these_counters():
    """The blocks of view parameters end far below the first block of draws."""
    assert _BLOCKS < FIRST_BLOCK


def test_draws_are_uniform():
    """200,000 draws: mean, variance and a histogram of 64 bins are those of the uniform."""
    u = draw_uniforms(0, np.arange(50_000), 0, 4).ravel()
    assert 0 < u.min() < u.max() < 1
    assert abs(u.mean() - 0.5) < 5 * np.sqrt(1 / 12 / u.size)
    assert abs(u.var() - 1 / 12) < 1e-3
    counts = np.histogram(u, bins=64, range=(0, 1))[0]
    chi_squared = ((counts - u.size / 64) ** 2 / (u.size / 64)).sum()
    assert chi_squared < 63 + 5 * np.sqrt(2 * 63)
