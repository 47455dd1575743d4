"""What the flows leave in Prefect for a person to read, apart from tables.

In: Markdown in which nothing that came from outside is markup. Left out: which artifact a flow
leaves (the flows).
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import Any

from storage_schemas.printable import printable

_SPECIAL = re.compile(r"([\\`*_{}\[\]()#+.!|~>-])")


def literal(value: object) -> str:
    """Return text that Markdown shows as it is, on one line: names, paths and reasons."""
    text = html.escape(printable(value), quote=True).replace("\n", " ")
    return _SPECIAL.sub(r"\\\1", text)


def verification(found: Sequence[dict[str, Any]], depth: str) -> str:
    """Return every problem of every store, under a heading that counts them.

    Args:
        found: One record a store, as `verify_stores` returns them.
        depth: How deep was looked.
    """
    count = sum(len(item["problems"]) for item in found)
    stores = len(found)
    problems = "1 problem" if count == 1 else f"{count or 'no'} problems"
    lines = [f"# Label stores verified ({depth}): {problems} in {stores} stores"]
    for item in found:
        if item["problems"]:
            lines += ["", f"## {literal(item['teacher'])} / {literal(item['split'])}", ""]
            lines += [f"- {literal(problem)}" for problem in item["problems"]]
    if count:
        lines += [
            "",
            "Shards that are named are out of use; `concentrate label` writes exactly them again.",
        ]
    return "\n".join(lines)
