"""Text for people: from outside, safe to show; and counts with their noun.

In: what everything uses that prints a name, a path or a reason; what cannot be printed becomes
visible instead. Left out: escaping for a particular place: HTML in pipeline.report.markup,
Markdown in flows.artifacts.
"""

from __future__ import annotations

_KEPT = frozenset(" \n\t\u00a0\u202f")


def printable(value: object) -> str:
    """Return a value as text that shows what it holds.

    Characters that cannot be printed, among them terminal escapes, bidirectional overrides and
    lone surrogates, become U+FFFD, so that a name can neither reorder the text around it nor speak
    to the terminal.
    """
    return "".join(c if c.isprintable() or c in _KEPT else "\ufffd" for c in str(value))


def counted(number: int, noun: str) -> str:
    """Return "1 shard", "12 shards", "3 classes"."""
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"
