"""Text from outside that is safe to show: what cannot be printed becomes visible instead.

In: one function, for everything that prints a name, a path or a reason. Left out: escaping for a
particular place: HTML in pipeline.report.markup, Markdown in flows.artifacts.
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
