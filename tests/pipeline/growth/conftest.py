"""A tiny real project that grows: images on disk, checkpoints, stores, students."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from pipeline.config import Project, load_project
from pipeline.data import ManifestUpdate, update_manifest
from pipeline.models.builders import build_classifier
from pipeline.plan import Plan, make_plan
from pipeline.store.published import (
    SPLIT_NAMES,
    PublishedLabels,
    open_published,
    publish,
    published_path,
)
from pipeline.teachers.labelling import label_shards, teacher_cost
from pipeline.teachers.spec import resolve_teachers
from pipeline.teachers.specialist import train_specialist
from pipeline.teachers.stores import missing_work, open_or_create, store_schema
from pipeline.workspace import Workspace
from storage_schemas.manifest import TEST, TRAIN

CLASSES = {"fruit": ("apple", "pear", "plum"), "tool": ("axe", "saw")}
BUILDER = "pipeline.models.backbones:glyph_resnet"
ARGS = {"width": 8, "in_channels": 3}
Shard = tuple[str, str, int, int]  # teacher, split, view, shard
Stamps = dict[Shard, tuple[int, str]]  # time and digest of the shard's three files


@dataclass
class GrowingProject:
    """A project folder, and what a person or the flows do to it."""

    folder: Path

    # --- what a person does ------------------------------------------------------------------

    def draw(self, path: str, seed: int) -> None:
        """Write an image: coloured noise whose mean colour and contrast depend on the seed."""
        target = self.folder / "images" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(seed)
        noise = rng.normal(rng.uniform(40, 215, 3), rng.uniform(5, 60), (20, 24, 3))
        Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(target)

    def remove(self, path: str) -> None:
        """Delete an image."""
        (self.folder / "images" / path).unlink()

    def rename(self, old: str, new: str) -> None:
        """Rename an image or a folder of images."""
        (self.folder / "images" / old).rename(self.folder / "images" / new)

    def images(self) -> set[str]:
        """All images there are now."""
        root = self.folder / "images"
        return {path.relative_to(root).as_posix() for path in root.rglob("*.png")}

    def checkpoint(self, name: str, classes: int, seed: int) -> None:
        """Write the weights of a teacher whose answers differ much from image to image."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = build_classifier(BUILDER, classes, ARGS)
        state = {key: value.contiguous() for key, value in network.state_dict().items()}
        for key, value in state.items():
            if value.ndim == 2:
                state[key] = 100 * value
        save_file(state, self.folder / f"{name}.safetensors")

    def settings(self, **changes: Any) -> None:
        """Change settings of the project file: top-level keys are merged one level deep."""
        path = self.folder / "project.yaml"
        tree = yaml.safe_load(path.read_text())
        for key, value in changes.items():
            tree[key] = {**tree[key], **value} if isinstance(value, dict) else value
        path.write_text(yaml.safe_dump(tree))

    def teacher(self, name: str, classes: Any, *, weights: str | None = "") -> dict[str, Any]:
        """Return a teacher's entry of the project file."""
        return {
            "name": name,
            "builder": BUILDER,
            "builder_args": ARGS,
            "weights": f"{name}.safetensors" if weights == "" else weights,
            "classes": classes,
            "input": {"size": 32},
            "batch_size": 4,
        }

    # --- what the flows do ---------------------------------------------------------------------

    def project(self, *overrides: str) -> Project:
        """Return the project file, read."""
        return load_project(self.folder / "project.yaml", overrides)

    def plan(self, *overrides: str) -> Plan:
        """Return the plan."""
        return make_plan(self.project(*overrides))[0]

    def train_specialists(self, *overrides: str) -> list[str]:
        """Train the specialists that have no weights; return their names."""
        project = self.project(*overrides)
        update = update_manifest(project)
        specs = resolve_teachers(project, update.label_space, update.manifest)
        todo = [spec for spec in specs if not spec.is_ready]
        for spec in todo:
            train_specialist(project, spec, update.manifest)
        return [spec.name for spec in todo]

    def label(
        self,
        *overrides: str,
        teachers: Iterable[str] | None = None,
        shards: int | None = None,
        splits: Sequence[int] = (TRAIN, TEST),
    ) -> ManifestUpdate:
        """Label what is missing, or the first `shards` shards of each store, and publish."""
        project = self.project(*overrides)
        update = update_manifest(project)
        for spec in resolve_teachers(project, update.label_space, update.manifest):
            if teachers is not None and spec.name not in teachers:
                continue
            fingerprints = {}
            for split in (TRAIN, TEST):
                schema = store_schema(project, spec, update.label_space, update.manifest, split)
                store = open_or_create(project, schema, update.label_space)
                if split in splits:
                    work = missing_work(project, schema, spec, update.manifest)[:shards]
                    label_shards(project, spec, update.manifest, store, work)
                fingerprints[SPLIT_NAMES[split]] = schema.fingerprint
            publish(Workspace(project.workspace), spec.name, fingerprints, teacher_cost(spec))
        return update

    def published(self, split: int, *overrides: str, **options: Any) -> PublishedLabels:
        """Return the published labels of a split."""
        project = self.project(*overrides)
        update = update_manifest(project)
        return open_published(project, update.label_space, update.manifest, split, **options)

    def fresh(self, name: str, *, same_rows: bool) -> GrowingProject:
        """Return a copy without labels, with the rows of this project or with new ones."""
        other = GrowingProject(self.folder.parent / name)
        ignored = shutil.ignore_patterns(*(["labels"] if same_rows else ["work"]))
        shutil.copytree(self.folder, other.folder, ignore=ignored)
        return other

    def shards(self) -> Stamps:
        """Return time and digest of every committed shard of the published stores."""
        found: Stamps = {}
        for record in (self.folder / "work/labels").glob("*/published.json"):
            teacher = record.parent.name
            for split, name in enumerate(SPLIT_NAMES):
                path = published_path(Workspace(self.folder / "work"), teacher, split)
                assert path is not None
                found.update({(teacher, name, *at): stamp for at, stamp in committed(path).items()})
        return found


def committed(store: Path) -> dict[tuple[int, int], tuple[int, str]]:
    """Return (view, shard) -> time and digest of its three files."""
    found = {}
    for record in store.glob("commits/c/*/*/0"):
        view, shard = int(record.parts[-3]), int(record.parts[-2])
        place = Path("c") / str(view) / str(shard) / "0"
        files = [store / name / place for name in ("ids", "gaps", "commits")]
        digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
        found[view, shard] = (max(file.stat().st_mtime_ns for file in files), digest)
    return found


@pytest.fixture
def growing(tmp_path: Path) -> GrowingProject:
    """Two verticals of 8 images a class, with one checkpoint each; nothing has run."""
    project = GrowingProject(tmp_path / "project")
    seed = 0
    for vertical, names in CLASSES.items():
        for name in names:
            for number in range(8):
                project.draw(f"{vertical}/{name}/{number}.png", seed)
                seed += 1
    project.checkpoint("fruit", 3, seed=0)
    project.checkpoint("tool", 2, seed=1)
    tree = {
        "workspace": "work",
        "data": {
            "source": "image_folder",
            "root": "images",
            "vertical_depth": 1,
            "test_fraction": 0.3,
        },
        "views": {"count": 2, "crop": {"scale": [0.5, 1.0]}, "flip": 0.5},
        "teachers": [
            project.teacher("fruit", ["plum", "apple", "pear"]),
            project.teacher("tool", ["axe", "saw"]),
        ],
        "specialists": {"epochs": 1, "batch_size": 8},
        "labels": {"k": 2, "precision": "exact", "shard_rows": 8, "chunk_rows": 4},
        "student": {
            "builder": BUILDER,
            "builder_args": ARGS,
            "input": {"size": 32},
            "objective": {"name": "soft_labels"},
            "epochs": 1,
            "batch_size": 8,
        },
        "runtime": {"device": "cpu"},
    }
    (project.folder / "project.yaml").write_text(yaml.safe_dump(tree))
    return project
