"""A first project file for a user's own folder of images.

In: the text of the file, written from what was found, and what is left to the user. Left out:
how the folder is recognised (pipeline.data.folder_layout). Imports no torch.

The file runs as written: each vertical gets a teacher that is trained here first. Comments show
how to put a checkpoint in its place.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline.config import load_project
from pipeline.data.folder_layout import (
    FolderContents,
    FolderLayout,
    detect_layout,
    look_into,
)
from pipeline.durable_files import write_durably
from storage_schemas.errors import ConfigError, DataError

PROJECT_FILE = "project.yaml"

_SIDES = (64, 96, 128, 160, 192, 224)
_FEW_IMAGES = 20
_LISTED = 8


def start_project(folder: Path, images: Path) -> dict[str, Any]:
    """Write `project.yaml` for a folder of images, and check it.

    Args:
        folder: Where the project file goes; made when it is not there.
        images: Class folders, or vertical/class folders; also below `train` and `test` or `val`.

    Returns:
        `config` (the path written), `found` (what the images are) and `to_do` (what to fill in),
        the last two one line each.

    Raises:
        ConfigError: If there is a project file already, or `folder` lies inside `images`.
        DataError: If no images in class folders are found.
    """
    config = folder / PROJECT_FILE
    if config.exists():
        raise ConfigError(
            str(config), ["exists already and is left as it is; remove it, or name another DIR"]
        )
    if folder.resolve().is_relative_to(images.resolve()):
        raise ConfigError(
            str(folder),
            [f"must lie outside the images ({images}): what is made there would be read as images"],
        )
    layout = detect_layout(images)
    contents = look_into(layout)
    if contents.train_images == 0:
        raise DataError(f"{layout.root} has no training image in a class folder")
    text = project_text(layout, contents, folder)
    try:
        write_durably(config, text.encode())
    except UnicodeEncodeError as error:
        raise ConfigError(str(config), [f"cannot be written: {error}"]) from error
    load_project(config)
    return {
        "config": str(config),
        "found": _found(layout, contents),
        "to_do": _to_do(layout, contents, config),
    }


def teacher_names(verticals: Sequence[str]) -> list[str]:
    """Return a distinct name per vertical that serves as a folder on any disk."""
    names: list[str] = []
    taken: set[str] = set()
    for position, vertical in enumerate(verticals):
        plain = unicodedata.normalize("NFKD", vertical).encode("ascii", "ignore").decode()
        plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", plain).lstrip("-_.").rstrip("-")[:56]
        name = base = plain or f"vertical-{position + 1}"
        count = 1
        while name.casefold() in taken:
            count += 1
            name = f"{base}-{count}"
        taken.add(name.casefold())
        names.append(name)
    return names


def _scalar(value: str) -> str:
    """Return a string as YAML that means the same in any place."""
    flow = yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, width=2**20)
    return flow.strip()[1:-1]


def _path(path: Path, base: Path) -> str:
    """Return a path relative to the project file where it lies near, else absolute."""
    target = path.resolve()
    try:
        relative = Path(os.path.relpath(target, base.resolve()))
    except ValueError:  # another drive
        return _scalar(str(target))
    is_near = relative.parts.count("..") <= 2 and not relative.parts[0].startswith("~")
    return _scalar(relative.as_posix() if is_near else str(target))


def _batch_size(images: int) -> int:
    """Return a power of two that gives about eight steps an epoch or more, in 16..256."""
    return min(256, max(16, 1 << max(images // 8, 1).bit_length() - 1))


def project_text(layout: FolderLayout, contents: FolderContents, folder: Path) -> str:
    """Return the project file."""
    side = next((side for side in _SIDES if side >= contents.side), _SIDES[-1])
    smallest = min(filter(None, contents.images_by_vertical.values()))
    return "\n".join(
        [
            "# Written by `concentrate init`. It runs as it is: each teacher is trained on its own",
            "# images first. Commented settings show what can be filled in. Paths are relative to",
            "# this file. More settings: flows/configs/image_folder.yaml.",
            "workspace: work  # everything that is made lies here",
            "",
            *_data_lines(layout, contents, folder),
            "",
            "views:  # each image is turned into this many views; teacher and student see the same",
            "  count: 4",
            "  crop: {scale: [0.5, 1.0]}",
            "  flip: 0.5  # 0.0 where left and right differ, as in text",
            "  color: {brightness: 0.2, contrast: 0.2, saturation: 0.2}",
            "",
            *_teacher_lines(contents, side),
            "",
            "specialists:  # how teachers with `weights: null` are trained",
            "  epochs: 30",
            f"  batch_size: {_batch_size(smallest)}",
            "  optimizer: {name: adamw, lr: 0.001, weight_decay: 0.05}",
            "",
            "labels:",
            "  k: 16  # classes kept of each answer",
            "  temperatures: [1.0, 2.0]",
            "",
            "student:",
            "  builder: torchvision:resnet18  # torchvision:mobilenet_v3_small is smaller",
            f"  input: {{size: {side}}}",
            "  objective: {name: soft_labels, temperature: 2.0}",
            "  epochs: 30",
            f"  batch_size: {_batch_size(contents.train_images)}",
            "  optimizer: {name: adamw, lr: 0.001, weight_decay: 0.05}",
            "  control: true  # also train it on the folders' names alone, to compare",
            "",
        ]
    )


def _data_lines(layout: FolderLayout, contents: FolderContents, folder: Path) -> list[str]:
    shape = "vertical/class/image" if layout.vertical_depth else "class/image"
    lines = [
        "data:",
        "  source: image_folder",
        f"  root: {_path(layout.root, folder)}",
        f"  vertical_depth: {layout.vertical_depth}  # root/{shape}",
    ]
    if layout.test_root is not None:
        lines.append(f"  test_root: {_path(layout.test_root, folder)}")
    else:
        lines += [
            "  test_fraction: 0.1  # held out for testing, by a hash of each path",
            "  # test_root: TEST  # or a folder of held-out images in the same layout",
        ]
    if layout.vertical_depth == 0:
        (names,) = contents.classes.values()
        first = ", ".join(_scalar(name) for name in list(names)[:2])
        lines += [
            "  # verticals:  # where each teacher knows some classes only; every class in one",
            f"  #   first: [{first}]",
            "  #   second: [...]",
        ]
    return lines


def _teacher_lines(contents: FolderContents, side: int) -> list[str]:
    verticals = [name for name, count in contents.images_by_vertical.items() if count]
    lines = ["teachers:"]
    for position, name in enumerate(teacher_names(verticals)):
        vertical = verticals[position]
        lines += [
            f"  - name: {_scalar(name)}",
            "    builder: torchvision:resnet18",
            "    weights: null  # trained here first",
            f"    classes: {{vertical: {_scalar(vertical)}}}",
            f"    input: {{size: {side}}}",
        ]
        if position == 0:
            lines += [
                "    # A teacher that you have, in place of the four settings above:",
                "    # builder: torchvision:resnet50  # or timm:NAME, or python:module:function",
                f"    # weights: checkpoints/{name}.safetensors  # or .pt with a state dict",
                f"    # classes: classes/{name}.txt  # one class a line, in order of its outputs",
                "    # input: {size: 224, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}",
            ]
    return lines


def _found(layout: FolderLayout, contents: FolderContents) -> list[str]:
    shape = "vertical/class folders" if layout.vertical_depth else "class folders"
    lines = [f"layout: {shape} in {layout.root}"]
    if layout.test_root is not None:
        lines.append(f"held-out images: {layout.test_root}")
    for vertical, classes in list(contents.classes.items())[:_LISTED]:
        lines.append(
            f"vertical {vertical!r}: {len(classes):,} classes, "
            f"{contents.images_by_vertical[vertical]:,} training images"
        )
    if len(contents.classes) > _LISTED:
        lines.append(f"and {len(contents.classes) - _LISTED:,} verticals more")
    lines.append(
        f"images: {contents.train_images:,} to train on, {contents.test_images:,} to test on"
    )
    lines.append(
        f"sample of {contents.looked_at} images: median shorter side {contents.side} pixels, "
        f"{len(contents.unreadable)} unreadable"
    )
    lines += [f"unreadable: {problem}" for problem in contents.unreadable[:3]]
    if contents.unlabelled:
        lines.append(f"outside the class folders, not trained on: {contents.unlabelled:,} files")
    return lines


def _to_do(layout: FolderLayout, contents: FolderContents, config: Path) -> list[str]:
    lines = [
        "teachers: nothing, if they are to be trained here; for a teacher that you have, set "
        "builder, weights, classes and input as the comments of the first one show"
    ]
    if layout.vertical_depth == 0:
        lines.append(
            "data.verticals: group the classes, one teacher each; without groups there is one "
            "teacher for all classes"
        )
    sizes = {
        f"{vertical}/{name}": count
        for vertical, classes in contents.classes.items()
        for name, count in classes.items()
    }
    few = [name for name, count in sizes.items() if count < _FEW_IMAGES]
    if few:
        lines.append(
            f"images: {len(few):,} of {len(sizes):,} classes have fewer than {_FEW_IMAGES} "
            f"training images, such as {few[0]!r}; add some"
        )
    if contents.untrained:
        lines.append(
            f"images: {len(contents.untrained):,} classes have test images only, such as "
            f"{contents.untrained[0]!r}; add training images"
        )
    lone = [vertical for vertical, classes in contents.classes.items() if len(classes) == 1]
    if lone:
        lines.append(
            f"verticals: {lone[0]!r} has one class, so a teacher has nothing to tell of it; "
            "join it with another vertical"
        )
    if contents.test_images == 0:
        lines.append("data.test_root or data.test_fraction: no image is held out for testing")
    if layout.unused:
        lines.append(f"images: {', '.join(layout.unused)} in {layout.root.parent} is not used")
    lines.append(f"then: concentrate plan {config}, and concentrate run {config}")
    return lines
