from __future__ import annotations

import subprocess
import sys

import pytest

from pipeline.data.source import clean_name, qualified_names, split_of
from storage_schemas.errors import DataError
from storage_schemas.manifest import TEST, TRAIN


def test_split_is_pinned_and_near_its_share() -> None:
    """A key has the same split for ever, and the share of test keys is as asked."""
    keys = [f"cats/{number}.jpg" for number in range(4000)]
    splits = [split_of(key, 0.2) for key in keys]
    assert splits[:12] == [0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]
    assert abs(splits.count(TEST) / len(splits) - 0.2) < 0.02


def test_larger_fraction_only_adds_test_keys() -> None:
    """No test sample becomes a training sample when the fraction grows."""
    keys = [str(number) for number in range(500)]
    small = {key for key in keys if split_of(key, 0.1) == TEST}
    assert small < {key for key in keys if split_of(key, 0.3) == TEST}


def test_fractions_zero_and_one_are_exact() -> None:
    """0 holds out nothing, 1 everything."""
    assert {split_of(str(n), 0.0) for n in range(99)} == {TRAIN}
    assert {split_of(str(n), 1.0) for n in range(99)} == {TEST}


def test_names_are_cleaned_for_the_label_space() -> None:
    """Outer blanks go, control characters become "_", accents are composed."""
    assert clean_name("  cafe\u0301 ") == "caf\u00e9"
    assert clean_name("a\x07b") == "a_b"
    assert clean_name(" ") == "_"


def test_classes_are_placed_in_verticals() -> None:
    """Without a mapping all go to "all"; with one, each to its own."""
    assert qualified_names(["b", "a"], None, owner="x") == {"b": "all/b", "a": "all/a"}
    found = qualified_names(["robin", "oak"], {"birds": ["robin"], "trees": ["oak"]}, owner="x")
    assert found == {"robin": "birds/robin", "oak": "trees/oak"}


@pytest.mark.parametrize(
    ("verticals", "message"),
    [
        ({"birds": ["robin"]}, r"none for \['oak'\]"),
        ({"birds": ["robin", "oak"], "trees": ["oak"]}, "one vertical"),
        ({"a/b": ["robin", "oak"]}, "must not hold '/'"),
    ],
)
def test_bad_verticals_are_refused(verticals: dict[str, list[str]], message: str) -> None:
    """A class in no vertical or in two, and a slash, are errors that name the class."""
    with pytest.raises(DataError, match=message):
        qualified_names(["robin", "oak"], verticals, owner="x")


def test_the_package_loads_without_torch() -> None:
    """Flows and the command line import pipeline.data; torch must not come along."""
    code = (
        "import sys, pipeline.data; "
        "sys.exit(str([m for m in ('torch', 'torchvision', 'matplotlib') if m in sys.modules]) "
        "if {'torch', 'torchvision', 'matplotlib'} & set(sys.modules) else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
