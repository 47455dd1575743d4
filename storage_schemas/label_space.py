"""The global label space, and how a specialist's own classes map into it.

In: ordered classes grouped in verticals, optional is-a parents, the injective map from a
teacher's local ids to global ids, and their digests. Left out: files (pipeline.data), the
images' labels (manifest.py).

A class is known by its qualified name `vertical/name`; its global id is its position. The space
only grows at the end, so an id once given keeps its meaning.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

from storage_schemas.errors import LabelSpaceError

LABEL_SPACE_VERSION = 1
HINTS = 8
LONGEST_HINT = 200


def canonical_digest(value: Any) -> str:
    """Return the sha256 hex digest of a JSON value in canonical form (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _are_names(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _name_problem(name: str) -> str | None:
    if not name or name != name.strip():
        return f"class or vertical name must be non-empty without outer blanks, got {name!r}"
    if not name.isprintable():
        return f"class or vertical name must hold printable characters only, got {name!r}"
    return None


@dataclass(frozen=True, kw_only=True)
class LabelSpace:
    """Ordered classes with their verticals and optional is-a parents.

    Attributes:
        classes: Qualified name `vertical/name` of each class; position = global id.
        parents: Per class name, the names of its direct is-a parents (also classes).

    Raises:
        LabelSpaceError: For duplicate or unprintable names, unknown parents, or an is-a cycle.
    """

    classes: tuple[str, ...]
    parents: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        problems: list[str] = []
        seen: set[str] = set()
        for name in self.classes:
            vertical, separator, local = name.partition("/")
            if not separator:
                problems.append(f"class must be 'vertical/name', got {name!r}")
            problems += [p for p in (_name_problem(vertical), _name_problem(local or "-")) if p]
            if name in seen:
                problems.append(f"class {name!r} appears twice")
            seen.add(name)
        for child, parents in self.parents.items():
            problems += [
                f"is-a {child!r} -> {parent!r}: {missing!r} is not a class"
                for parent in parents
                for missing in (child, parent)
                if missing not in seen
            ]
        if not problems:
            problems += self._cycle_problems()
        if problems:
            raise LabelSpaceError("label space", problems)

    def _cycle_problems(self) -> list[str]:
        done: set[str] = set()
        for start in self.parents:
            path: list[str] = []
            stack = [(start, iter(self.parents.get(start, ())))]
            path.append(start)
            while stack:
                node, parents = stack[-1]
                parent = next(parents, None)
                if parent is None:
                    done.add(node)
                    stack.pop()
                    path.pop()
                elif parent in path:
                    return [f"is-a parents form a cycle: {' -> '.join([*path, parent])}"]
                elif parent not in done:
                    stack.append((parent, iter(self.parents.get(parent, ()))))
                    path.append(parent)
        return []

    def __len__(self) -> int:
        return len(self.classes)

    @functools.cached_property
    def index(self) -> Mapping[str, int]:
        """Qualified name -> global id."""
        return {name: position for position, name in enumerate(self.classes)}

    @functools.cached_property
    def verticals(self) -> tuple[str, ...]:
        """Vertical names in order of first appearance; position = vertical id."""
        return tuple(dict.fromkeys(name.partition("/")[0] for name in self.classes))

    @functools.cached_property
    def vertical_of(self) -> npt.NDArray[np.int32]:
        """Vertical id of each class, shape (C,)."""
        order = {name: position for position, name in enumerate(self.verticals)}
        return np.array([order[name.partition("/")[0]] for name in self.classes], np.int32)

    def classes_in(self, vertical: str) -> npt.NDArray[np.int64]:
        """Return the ascending global ids of one vertical's classes.

        Raises:
            LabelSpaceError: If there is no such vertical.
        """
        if vertical not in self.verticals:
            raise LabelSpaceError(
                "label space",
                [f"vertical must be one of {list(self.verticals)}, got {vertical!r}"],
            )
        return np.flatnonzero(self.vertical_of == self.verticals.index(vertical))

    def ancestors(self, class_id: int) -> tuple[int, ...]:
        """Return the ascending global ids of all is-a ancestors of one class."""
        found: set[str] = set()
        frontier = list(self.parents.get(self.classes[class_id], ()))
        while frontier:
            name = frontier.pop()
            if name not in found:
                found.add(name)
                frontier.extend(self.parents.get(name, ()))
        return tuple(sorted(self.index[name] for name in found))

    def extended(self, names: Iterable[str]) -> LabelSpace:
        """Return this space with the new names appended in sorted order; known names stay put."""
        new = sorted(set(names) - set(self.classes))
        return LabelSpace(classes=(*self.classes, *new), parents=self.parents) if new else self

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form; `from_dict` is its inverse."""
        return {
            "version": LABEL_SPACE_VERSION,
            "classes": list(self.classes),
            "parents": {child: list(parents) for child, parents in sorted(self.parents.items())},
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> LabelSpace:
        """Read the JSON form.

        Raises:
            LabelSpaceError: If the version or the shape is not the one of this code.
        """
        version = value.get("version") if isinstance(value, Mapping) else None
        if version != LABEL_SPACE_VERSION:
            raise LabelSpaceError(
                "label space", [f"version must be {LABEL_SPACE_VERSION}, got {version!r:.80}"]
            )
        classes, parents = value.get("classes"), value.get("parents", {})
        if not _are_names(classes):
            raise LabelSpaceError("label space", ["classes must be a list of names"])
        if not isinstance(parents, Mapping) or not all(map(_are_names, parents.values())):
            raise LabelSpaceError("label space", ["parents must map names to lists of names"])
        return cls(
            classes=tuple(classes),
            parents={child: tuple(names) for child, names in parents.items()},
        )

    @functools.cached_property
    def digest(self) -> str:
        """sha256 over the canonical JSON form."""
        return canonical_digest(self.to_dict())


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelMap:
    """The injective map from a teacher's local class ids to global ids.

    Attributes:
        names: Qualified global name of each local class; position = local id.
        global_ids: (C_t,) int64, global id of each local class. Its image is the support.
    """

    names: tuple[str, ...]
    global_ids: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def support(self) -> npt.NDArray[np.int64]:
        """The global ids this teacher can name, ascending, shape (C_t,)."""
        return np.sort(self.global_ids)

    @property
    def digest(self) -> str:
        """sha256 over the ordered names: global ids may differ between spaces, names may not."""
        return canonical_digest(list(self.names))

    def to_local(self, num_classes: int) -> npt.NDArray[np.int64]:
        """Return the inverse table, shape (num_classes,), -1 outside the support."""
        table = np.full(num_classes, -1, np.int64)
        table[self.global_ids] = np.arange(len(self.global_ids))
        return table

    @classmethod
    def from_names(
        cls,
        space: LabelSpace,
        names: Sequence[str],
        *,
        owner: str,
        vertical: str | None = None,
    ) -> LabelMap:
        """Resolve a teacher's ordered class list in the label space.

        A name is tried as a qualified name, then inside `vertical`, then as the bare name of
        exactly one class of the whole space.

        Args:
            space: The global label space.
            names: Class names in the order of the teacher's logits.
            owner: Who brought the list; starts the error message.
            vertical: Where bare names are looked up first.

        Raises:
            LabelSpaceError: Names every unknown, ambiguous and duplicate class.
        """
        bare: dict[str, list[str]] = {}
        for qualified in space.classes:
            bare.setdefault(qualified.partition("/")[2], []).append(qualified)
        resolved: list[str] = []
        problems: list[str] = []
        for position, name in enumerate(names):
            within = f"{vertical}/{name}" if vertical is not None else None
            candidates = bare.get(name, [])
            if name in space.index:
                resolved.append(name)
            elif within is not None and within in space.index:
                resolved.append(within)
            elif len(candidates) == 1:
                resolved.append(candidates[0])
            elif candidates:
                problems.append(
                    f"class {position} {name!r} is ambiguous: write one of {sorted(candidates)}"
                )
            else:
                # Each search takes as long as there are classes: a wholly wrong list gets a few.
                searched = len(problems) < HINTS and len(name) <= LONGEST_HINT
                known = [*bare, *space.index] if searched else []
                near = difflib.get_close_matches(name, known, n=3)
                hint = f"; did you mean {near}?" if near else ""
                problems.append(f"class {position} {name!r} is not in the label space{hint}")
        if not problems:
            first: dict[str, int] = {}
            for position, name in enumerate(resolved):
                if name in first:
                    problems.append(
                        f"class {position} {names[position]!r} is a duplicate of class "
                        f"{first[name]}: both are {name!r}"
                    )
                first.setdefault(name, position)
        if not names:
            problems.append("the class list is empty")
        if problems:
            raise LabelSpaceError(f"{owner}: class list", problems)
        ids = np.array([space.index[name] for name in resolved], np.int64)
        return cls(names=tuple(resolved), global_ids=ids)
