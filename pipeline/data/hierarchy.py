"""Where the is-a parents of classes come from: Unicode names of glyphs, or a file of the user.

In: the three levels of a glyph (a script, a letter in all its forms, the glyph itself), and the
parents file of an image folder. Left out: what parents mean for labels
(storage_schemas.hierarchy).
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pipeline.config.bounded_yaml import read_yaml
from pipeline.data.source import Parents, clean_name
from storage_schemas.errors import DataError

_CASES = frozenset({"CAPITAL", "SMALL"})
_ANY = "any"
"""Starts the name of an inner class, which no character's name does: those are upper case."""


def letter_name(name: str) -> str:
    """Return what a character is without case and marks: "LATIN LETTER A" for A with acute.

    Canonical decomposition finds the base of composed characters; names tell the others, such as
    "LEFTWARDS ARROW WITH STROKE".

    Args:
        name: A character's Unicode name.
    """
    base = unicodedata.normalize("NFD", unicodedata.lookup(name))[0]
    words = unicodedata.name(base).partition(" WITH ")[0].split()
    return " ".join(word for word in words if word not in _CASES)


def glyph_parents(classes: Collection[str]) -> Parents:
    """Return the parents of glyph classes and of the inner classes above them.

    A letter that only one class is a form of says no more than that class, and is left out.

    Args:
        classes: Qualified names; inner ones of an earlier call among them are passed over.
    """
    letters = {}
    for qualified in sorted(classes):
        vertical, _, name = qualified.partition("/")
        if not name.startswith(f"{_ANY} "):
            letters[qualified] = f"{vertical}/{_ANY} {letter_name(name)}"
    forms = Counter(letters.values())
    parents: dict[str, tuple[str, ...]] = {}
    for qualified, letter in letters.items():
        vertical = qualified.partition("/")[0]
        script = f"{vertical}/{_ANY} {vertical}"
        if forms[letter] > 1:
            parents[qualified], parents[letter] = (letter,), (script,)
        else:
            parents[qualified] = (script,)
    return parents


def read_parents(path: Path, classes: Collection[str], labelled: Collection[str]) -> Parents:
    """Read a parents file: a YAML mapping from a class to its parent, or to a list of them.

    A class is written `vertical/name`, or by its bare name where only one class has it; a parent
    that is no class of images is an inner class, in the vertical of its child unless it is
    written `vertical/name`.

    Args:
        path: The file.
        classes: Qualified names of all classes, now or earlier.
        labelled: Those of them that have images now.

    Raises:
        DataError: If the file cannot be read, or does not fit the classes; lists every problem.
    """
    try:
        tree = read_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise DataError(f"data.parents: {path} cannot be read: {error}") from None
    if not isinstance(tree, dict) or not all(map(_is_entry, tree.items())):
        raise DataError(
            f"data.parents: {path} must map the name of each class to the name of its parent, or "
            "to a list of names"
        )
    parents, problems = _resolved({key: _names(value) for key, value in tree.items()}, classes)
    above = {parent for names in parents.values() for parent in names}
    problems += [
        f"{name!r} has classes below it, so its images must lie in their folders"
        for name in sorted(above & set(labelled))
    ]
    if problems:
        raise DataError(f"data.parents: {path}: {'; '.join(problems)}")
    return parents


def _is_entry(entry: tuple[Any, Any]) -> bool:
    child, parents = entry
    values = parents if isinstance(parents, list) else [parents]
    return isinstance(child, str) and bool(values) and all(isinstance(v, str) for v in values)


def _names(value: str | list[str]) -> tuple[str, ...]:
    return tuple(value) if isinstance(value, list) else (value,)


def _resolved(
    declared: Mapping[str, tuple[str, ...]], classes: Collection[str]
) -> tuple[Parents, list[str]]:
    """Return the parents by qualified names, and what does not fit."""
    known: dict[str, set[str]] = {}
    for qualified in classes:
        known.setdefault(qualified.partition("/")[2], set()).add(qualified)
        known.setdefault(qualified, set()).add(qualified)
    pending = {clean_name(child): tuple(map(clean_name, up)) for child, up in declared.items()}
    parents: dict[str, tuple[str, ...]] = {}
    problems: list[str] = []
    # A line can be placed once its child is known: images name the leaves, lines what is above.
    while placed := sorted(child for child in pending if child in known):
        for child in placed:
            found, names = known[child], pending.pop(child)
            if len(found) > 1:
                problems.append(f"{child!r} is ambiguous: write one of {sorted(found)}")
                continue
            (qualified,) = found
            vertical = qualified.partition("/")[0]
            above = tuple(name if "/" in name else f"{vertical}/{name}" for name in names)
            parents[qualified] = above
            for parent in above:
                known.setdefault(parent.partition("/")[2], set()).add(parent)
                known.setdefault(parent, set()).add(parent)
    problems += [f"{child!r} is no class, and no parent of one" for child in sorted(pending)]
    return parents, problems
