"""What `benchmarks/training_speed.py` says of a GPU, by made-up spans of its work."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize(
    ("spans", "share"),
    [
        ([], 0.0),
        ([(2, 5)], 1.0),
        ([(0, 1), (3, 4)], 0.5),
        ([(3, 4), (0, 1)], 0.5),
        ([(0, 4), (1, 2), (3, 6)], 1.0),  # kernels of several streams overlap
        ([(0, 2), (1, 3), (9, 10)], 0.4),
    ],
)
def test_share_of_the_time_that_is_covered(monkeypatch, spans, share):
    """What several spans cover counts once, and gaps between the first and the last count."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    assert importlib.import_module("training_speed").busy_share(spans) == pytest.approx(share)
