"""What manifest.json may say.

In: the names of the parts and the check of every field, so that a file from outside can ask for no
part elsewhere and for no impossible row. Left out: reading and writing it (manifest_files.py).
"""

from __future__ import annotations

from typing import Any

LARGEST_ROWS = 2**40


def part_name(position: int) -> str:
    """Return the file of one append."""
    return f"part-{position:05d}.parquet"


def index_problem(index: dict[str, Any]) -> str | None:
    """Return which field of manifest.json is not what `save` writes, or None."""
    appends, retired = index.get("appends"), index.get("retired")
    if not isinstance(appends, list) or not appends:
        return "appends must be a list with an entry for each part"
    begin = 0
    for position, append in enumerate(appends):
        fields = append if isinstance(append, dict) else {}
        rows = fields.get("rows")
        if fields.get("part") != part_name(position) or not isinstance(fields.get("chain"), str):
            return f"append {position} must name {part_name(position)} and a chain digest"
        if type(rows) is not int or not begin < rows <= LARGEST_ROWS:
            return f"append {position} must end above row {begin}, got {rows!r:.40}"
        begin = rows
    if not isinstance(retired, list) or any(
        type(row) is not int or not 0 <= row < begin for row in retired
    ):
        return f"retired must be a list of rows below {begin}"
    if type(index.get("num_classes")) is not int or index["num_classes"] < 0:
        return "num_classes must be a count"
    return None
