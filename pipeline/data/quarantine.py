"""The table of files that do not decode, safe to open in a terminal and in a spreadsheet."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping


def _visible(text: str) -> str:
    """Return text with what cannot be printed written as escapes."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode()
        for c in text
    )


def quarantine_csv(problems: Mapping[str, str]) -> bytes:
    """Return the table of unreadable samples, key -> reason."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "reason"])
    # A spreadsheet would take a path that begins like this for a formula, a terminal an escape.
    writer.writerows(
        (f"./{key}" if key[:1] in "=+-@" else key, reason)
        for key, reason in (map(_visible, item) for item in sorted(problems.items()))
    )
    return text.getvalue().encode(errors="backslashreplace")
