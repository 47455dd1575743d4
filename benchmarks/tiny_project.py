"""A project that is labelled in a second: noise images and a small network with random weights.

For the fault campaigns, which need the real labelling code many times over and no accuracy.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from pipeline.config import load_project
from pipeline.data import update_manifest
from pipeline.models.builders import build_classifier
from pipeline.teachers.publishing import label_here
from pipeline.teachers.spec import resolve_teachers

BUILDER = "pipeline.models.backbones:glyph_resnet"
BUILDER_ARGS = {"width": 8, "in_channels": 3}
CLASSES = ("axe", "file", "saw")


def write_images(folder: Path, numbers: range) -> None:
    """Write one noise image per class and number."""
    for position, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in numbers:
            rng = np.random.default_rng((position, number))
            pixels = rng.integers(0, 255, (20, 24, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:03d}.png")


def write_weights(path: Path, seed: int) -> None:
    """Write a checkpoint with random weights."""
    torch.manual_seed(seed)
    network = build_classifier(BUILDER, len(CLASSES), BUILDER_ARGS)
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, path)


def write_project(root: Path, images: int, seed: int = 0) -> None:
    """Write images, weights and the project file."""
    write_images(root / "images", range(images))
    write_weights(root / "tools.safetensors", seed)
    settings = {
        "workspace": "work",
        "data": {"source": "image_folder", "root": "images", "test_fraction": 0.3},
        "views": {"count": 2, "crop": {"scale": [0.5, 1.0]}, "flip": 0.5},
        "teachers": [
            {
                "name": "tools",
                "builder": BUILDER,
                "builder_args": BUILDER_ARGS,
                "weights": "tools.safetensors",
                "classes": list(CLASSES),
                "input": {"size": 16},
                "batch_size": 8,
            }
        ],
        "labels": {"k": 2, "temperatures": [1.0, 2.0], "shard_rows": 16, "chunk_rows": 8},
        "runtime": {"device": "cpu"},
    }
    (root / "project.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")


def label(root: Path) -> int:
    """Do what `concentrate label` does, without Prefect; return the shards written."""
    project = load_project(root / "project.yaml")
    update = update_manifest(project)
    written = 0
    for spec in resolve_teachers(project, update.label_space, update.manifest):
        done = label_here(project, spec, update.label_space, update.manifest)
        written += sum(counts.shards for counts in done.values())
    return written
