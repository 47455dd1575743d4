"""Reading a project file: overrides, paths, and every problem at once."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pipeline.config.bounded_yaml import read_yaml
from pipeline.config.data import GlyphData, ImageFolderData, TorchvisionData
from pipeline.config.project import Project
from pipeline.locations import is_local
from storage_schemas.errors import ConfigError


def _known_keys(model: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """Return the keys known where an unknown one was found, for the error message."""
    current: Any = model
    for part in location:
        annotation = None
        if isinstance(current, type) and issubclass(current, BaseModel):
            info = current.model_fields.get(str(part))
            annotation = info.annotation if info else None
        current = _model_in(annotation, part) or current
    if isinstance(current, type) and issubclass(current, BaseModel):
        return sorted(current.model_fields)
    return []


def _model_in(annotation: Any, tag: str | int) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _model_in(argument, tag)
        if found is not None:
            return found
    return None


def _where(location: Sequence[str | int], tree: Any) -> str:
    """Return the dotted place of an error as the file has it, without the tags of unions."""
    parts: list[str] = []
    for position, part in enumerate(location):
        if isinstance(tree, list):
            tree = dict(enumerate(tree))
        if isinstance(tree, dict) and part in tree:
            tree = tree[part]
        elif position < len(location) - 1:
            continue
        parts.append(str(part))
    return ".".join(parts)


def _sentence(error: ErrorDetails, tree: Any) -> str:
    where = _where(error["loc"], tree)
    if error["type"] == "extra_forbidden":
        key = str(error["loc"][-1])
        known = _known_keys(Project, error["loc"][:-1])
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return f"{where}: unknown key{hint}" + (f" (known: {', '.join(known)})" if known else "")
    if error["type"] == "missing":
        return f"{where}: required, and missing"
    message = error["msg"].removeprefix("Value error, ")
    got = "" if error["type"] == "value_error" else f", got {error.get('input')!r:.200}"
    return f"{where}: {message}{got}" if where else f"{message}{got}"


def _has_inner(location: tuple[str | int, ...], places: set[tuple[str | int, ...]]) -> bool:
    return any(len(p) > len(location) and p[: len(location)] == location for p in places)


def _apply_override(tree: dict[str, Any], override: str) -> str | None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        return f"--set must be key.path=value, got {override!r}"
    try:
        value = read_yaml(text)
    except ValueError as error:
        return f"--set {key}: value {error}"
    *parents, last = key.split(".")
    node: Any = tree
    for part in parents:
        if isinstance(node, list):
            match = [x for x in node if isinstance(x, dict) and x.get("name") == part]
            if not match:
                return f"--set {key}: no entry named {part!r}"
            node = match[0]
        elif isinstance(node, dict):
            if node.get(part) is None:
                node[part] = {}
            node = node[part]
        else:
            return f"--set {key}: {part!r} is below a plain value"
    if not isinstance(node, dict):
        return f"--set {key}: {last!r} is not below a mapping"
    node[last] = value
    return None


def _absolute(path: Path, base: Path) -> Path:
    try:
        path = path.expanduser()
        return (path if path.is_absolute() else base / path).resolve()
    except (ValueError, RuntimeError, OSError) as error:  # NUL, an unknown ~user, a loop of links
        raise ConfigError(str(base), [f"path {str(path)!r:.200} cannot be used: {error}"]) from None


def _resolve_paths(project: Project, base: Path) -> Project:
    data = project.data
    if isinstance(data, ImageFolderData | TorchvisionData):
        data = data.model_copy(update={"root": _absolute(data.root, base)})
    if isinstance(data, ImageFolderData) and data.test_root is not None:
        data = data.model_copy(update={"test_root": _absolute(data.test_root, base)})
    if isinstance(data, ImageFolderData) and data.parents is not None:
        data = data.model_copy(update={"parents": _absolute(data.parents, base)})
    if isinstance(data, GlyphData):
        fonts = tuple(str(_absolute(Path(pattern), base)) for pattern in data.fonts)
        data = data.model_copy(update={"fonts": fonts})
    teachers = []
    for teacher in project.teachers:
        update: dict[str, Any] = {}
        if teacher.weights is not None:
            update["weights"] = _absolute(teacher.weights, base)
        if isinstance(teacher.classes, Path):
            update["classes"] = _absolute(teacher.classes, base)
        teachers.append(teacher.model_copy(update=update))
    workspace = project.workspace
    return project.model_copy(
        update={
            "workspace": _absolute(workspace, base) if is_local(workspace) else workspace,
            "data": data,
            "teachers": tuple(teachers),
        }
    )


def load_project(path: Path | str, overrides: Sequence[str] = ()) -> Project:
    """Read a project file, apply `key.path=value` overrides, and check it.

    An entry of a list is addressed by its `name`: `teachers.birds.weights=new.safetensors`.

    Args:
        path: The YAML file.
        overrides: Values are YAML; later ones win.

    Raises:
        ConfigError: With every problem found, for a missing file, bad YAML, unknown keys and
            values out of bounds.
    """
    path = Path(path)
    try:
        if not path.is_file() and path.exists():  # a pipe could keep the reader for ever
            raise ConfigError(str(path), ["is not a regular file"])
        tree = read_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(str(path), ["no such file; `concentrate init` writes one"]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), [f"cannot be read: {error}"]) from None
    except ValueError as error:
        raise ConfigError(str(path), [str(error)]) from None
    if not isinstance(tree, dict):
        raise ConfigError(str(path), [f"must be a mapping, got {type(tree).__name__}"])
    problems = [p for p in (_apply_override(tree, override) for override in overrides) if p]
    if problems:
        raise ConfigError(str(path), problems)
    try:
        project = Project.model_validate(tree)
    except ValidationError as error:
        errors = error.errors()
        bad = {found["loc"][: depth + 1] for found in errors for depth in range(len(found["loc"]))}
        # A list whose entries are all wrong is also called too short: that says nothing new.
        told = [e for e in errors if e["type"] != "too_short" or not _has_inner(e["loc"], bad)]
        raise ConfigError(str(path), [_sentence(e, tree) for e in told]) from None
    return _resolve_paths(project, path.resolve().parent)
