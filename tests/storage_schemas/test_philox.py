from __future__ import annotations

import math

import numpy as np
import pytest

from storage_schemas.philox import philox4x32, split_words, uniforms


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0xFFFFFFFF,) * 4,
            (0xFFFFFFFF,) * 2,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(counter, key, expected):
    """Philox4x32-10 gives the three known answers that Random123 publishes."""
    assert philox4x32(counter, key).tolist() == list(expected)


def test_philox_broadcasts():
    """A batch of counters gives, at each place, what that counter gives alone."""
    rows = np.arange(5)
    together = philox4x32((rows, 1, 2, np.arange(3)[:, None]), (9, 10))
    assert together.shape == (4, 3, 5)
    assert together[:, 2, 4].tolist() == philox4x32((4, 1, 2, 2), (9, 10)).tolist()


def test_uniforms_have_the_moments_of_the_uniform():
    """100,000 uniforms of consecutive counters: mean, variance, no correlation of neighbours."""
    u = uniforms(philox4x32((np.arange(25_000), 0, 0, 0), (1, 2))).ravel()
    assert u.min() > 0
    assert u.max() < 1
    assert abs(u.mean() - 0.5) < 4 * math.sqrt(1 / 12 / u.size)
    assert abs(u.var() - 1 / 12) < 1e-3
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 4 / math.sqrt(u.size)


def test_uniforms_stay_inside_the_open_interval():
    """The smallest and the largest word give neither 0 nor 1."""
    u = uniforms(np.array([0, 2**32 - 1], np.uint32))
    assert u[0] == 2.0**-33
    assert u[1] == 1 - 2.0**-33


def test_split_words_of_a_64_bit_number():
    """The low word comes first."""
    low, high = split_words(0x1234_5678_9ABC_DEF0)
    assert (int(low), int(high)) == (0x9ABCDEF0, 0x12345678)
