"""Escaping and number formats."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.report.markup import Markup, clipped, decimal, element, escaped, short, signed


class _Collector(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, list[tuple[str, str | None]]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, attrs))

    def handle_data(self, data: str) -> None:
        self.text += data


@given(st.text(alphabet=st.characters(codec=None)), st.text())
def test_any_text_stays_text(child: str, attribute: str) -> None:
    """Whatever the child and the attribute hold, there is one element with one attribute."""
    found = _Collector()
    found.feed(element("p", child, title=attribute))
    found.close()
    assert [(tag, [name for name, _ in attrs]) for tag, attrs in found.tags] == [("p", ["title"])]
    kept = [c for c in child if c.isprintable()]
    assert [c for c in found.text if c in set(kept)] == kept


def test_markup_is_not_escaped_twice() -> None:
    """An element within an element stays an element."""
    assert element("p", element("b", "x & y")) == "<p><b>x &amp; y</b></p>"
    assert escaped(Markup("<b>")) == "<b>"


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "n/a"), (float("nan"), "n/a"), (2.25, "+2.2"), (-3.0, "\u22123.0"), (-0.01, "0.0")],
)
def test_signed(value: float | None, shown: str) -> None:
    """A difference has its sign, unless it rounds to nothing."""
    assert signed(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "n/a"), (0, "0"), (999, "999"), (1330, "1.33\u00a0k"), (999_950, "1\u00a0M")],
)
def test_short(value: float | None, shown: str) -> None:
    """Large numbers have three digits."""
    assert short(value) == shown


def test_decimal_and_clipped() -> None:
    """Thousands are set apart; a long name keeps its two ends and its length."""
    assert decimal(1234.56) == "1,234.6"
    assert clipped("abc", 10) == "abc"
    assert len(clipped("x" * 50, 10)) == 10
    assert clipped("abcdefghijklmnop", 9) == "abcde\u2026nop"
