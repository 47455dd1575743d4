"""A labelled project whose student has neither dropout nor batch statistics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

# The student's network, as a user writes one. RANK_DIES is "rank:step:how".
PLAIN_NETWORK = """
import os
import signal

import torch
from torch import nn


class Plain(nn.Module):
    def __init__(self, num_classes, width):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, stride=2)
        self.fc = nn.Linear(width, num_classes)
        self.steps = 0

    def forward(self, images):
        if self.training:
            rank, step, how = os.environ.get("RANK_DIES", "-1:0:").split(":")
            self.steps += 1
            if os.environ.get("RANK") == rank and self.steps == int(step):
                if how == "killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise RuntimeError("the network broke")
        return self.fc(torch.tanh(self.conv(images)).mean(dim=(2, 3)))


def plain(num_classes, width=8):
    return Plain(num_classes, width)
"""
VERTICALS = {"fruit": ("apple", "pear", "plum"), "tool": ("axe", "saw")}


def _label(config: Path) -> None:
    from pipeline.config import load_project
    from pipeline.data import update_manifest
    from pipeline.models.builders import build_classifier
    from pipeline.models.weights import save_weights
    from pipeline.store.published import SPLIT_NAMES, publish
    from pipeline.teachers.labelling import label_shards, teacher_cost
    from pipeline.teachers.spec import resolve_teachers
    from pipeline.teachers.stores import missing_work, open_or_create, store_schema
    from pipeline.workspace import Workspace
    from storage_schemas.manifest import TEST, TRAIN

    # A test that compares roundings must not draw other teachers each time.
    torch.manual_seed(0)
    for name, classes in VERTICALS.items():
        network = build_classifier("plain_network:plain", len(classes), {})
        save_weights(network, config.with_name(f"{name}.safetensors"))
    project = load_project(config, [])
    update = update_manifest(project)
    for spec in resolve_teachers(project, update.label_space, update.manifest):
        fingerprints = {}
        for split in (TRAIN, TEST):
            schema = store_schema(project, spec, update.label_space, update.manifest, split)
            store = open_or_create(project, schema, update.label_space)
            work = missing_work(project, schema, spec, update.manifest)
            label_shards(project, spec, update.manifest, store, work)
            fingerprints[SPLIT_NAMES[split]] = schema.fingerprint
        publish(Workspace(project.workspace), spec.name, fingerprints, teacher_cost(spec))


@pytest.fixture(scope="session")
def labelled_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project file of 5 classes x 6 images with published labels; 12 steps of 7 images."""
    folder = tmp_path_factory.mktemp("ranks")
    for seed, (vertical, name) in enumerate(
        (vertical, name) for vertical, names in VERTICALS.items() for name in names
    ):
        for number in range(6):
            path = folder / "images" / vertical / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng([seed, number]).integers(0, 255, (20, 24, 3), np.uint8)
            Image.fromarray(pixels // 2 + 20 * seed).save(path)
    (folder / "plain_network.py").write_text(PLAIN_NETWORK)
    settings = {
        "workspace": "work",
        "data": {"source": "image_folder", "root": "images", "vertical_depth": 1},
        "views": {"count": 2, "crop": {"scale": [0.5, 1.0]}, "flip": 0.5},
        "teachers": [
            {
                "name": name,
                "builder": "plain_network:plain",
                "weights": f"{name}.safetensors",
                "classes": list(classes),
                "input": {"size": 16},
            }
            for name, classes in VERTICALS.items()
        ],
        "labels": {"k": 2, "temperatures": [1.0, 2.0], "shard_rows": 8, "chunk_rows": 4},
        "student": {
            "builder": "plain_network:plain",
            "input": {"size": 16},
            "head": {
                "name": "structurally_connected",
                "hidden": 16,
                "block": 8,
                "self_paced": "class",
                "normalization": "layer",
            },
            "objective": {
                "name": "knowledge_concentration",
                "temperature": 2.0,
                "hard_weight": 0.5,
            },
            "optimizer": {"name": "sgd", "lr": 0.1},
            "clip_norm": 1.0,
            "ema_decay": 0.9,
            "epochs": 4,
            "batch_size": 7,
            "log_every_steps": 1,
            "checkpoint_every_steps": 3,
        },
        "runtime": {"device": "cpu"},
    }
    config = folder / "project.yaml"
    config.write_text(yaml.safe_dump(settings))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        _label(config)
    return config
