"""The classes of a teacher as the project file gives them: a vertical, all, a list, or a file.

In the half that both sides use: labels are bound to their classes, and a student checks that
without a teacher. Imports no torch.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.config import TeacherConfig, VerticalClasses
from storage_schemas.errors import ConfigError
from storage_schemas.label_space import LabelMap, LabelSpace


def read_class_list(path: Path, owner: str) -> tuple[str, ...]:
    """Read one class name a line; blank lines at the end are ignored.

    Raises:
        ConfigError: If the file cannot be read as UTF-8 text.
    """
    try:
        lines = path.read_text(encoding="utf-8").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{owner}.classes", [f"{path} cannot be read: {error}"]) from error
    return tuple(line.strip() for line in lines)


def label_map_of(config: TeacherConfig, space: LabelSpace) -> LabelMap:
    """Return the map of a teacher's outputs into the label space.

    Raises:
        LabelSpaceError: If its class list does not fit the label space.
        ConfigError: If its class list cannot be read.
    """
    owner = f"teachers.{config.name}"
    if isinstance(config.classes, VerticalClasses):
        names = [space.classes[i] for i in space.classes_in(config.classes.vertical)]
        return LabelMap.from_names(space, names, owner=owner)
    if config.classes == "all":
        return LabelMap.from_names(space, list(space.classes), owner=owner)
    names = (
        list(read_class_list(config.classes, owner))
        if isinstance(config.classes, Path)
        else list(config.classes)
    )
    vertical = config.name if config.name in space.verticals else None
    return LabelMap.from_names(space, names, owner=owner, vertical=vertical)
