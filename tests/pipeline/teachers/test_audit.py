"""An audit runs the teacher again: it agrees with its own labels, and with no others."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from pipeline.config import load_project
from pipeline.data import update_manifest
from pipeline.models.builders import build_classifier
from pipeline.store import SoftLabelStore
from pipeline.store.layout import shard_file
from pipeline.teachers.audit import LabelAudit, audit_store
from pipeline.teachers.labelling import label_shards
from pipeline.teachers.spec import resolve_teacher
from pipeline.teachers.stores import missing_work, open_or_create, store_schema
from storage_schemas.manifest import TRAIN

BUILDER = "pipeline.models.backbones:glyph_resnet"
CLASSES = ("apple", "fig", "pear", "plum")


def write_image(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (20, 24, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def write_weights(path: Path, seed: int) -> None:
    """A checkpoint whose logits differ between images by whole nats."""
    torch.manual_seed(seed)
    network = build_classifier(BUILDER, len(CLASSES), {"width": 8, "in_channels": 3})
    state = {name: value.contiguous() for name, value in network.state_dict().items()}
    last = [name for name in state if name.endswith("weight")][-1]
    state[last] = torch.randn_like(state[last]) * 3
    save_file(state, path)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of one teacher, labelled."""
    root = tmp_path_factory.mktemp("audit")
    for position, name in enumerate(CLASSES):
        for number in range(8):
            write_image(root / "images" / name / f"{number}.png", seed=100 * position + number)
    write_weights(root / "fruit.safetensors", seed=0)
    config: dict[str, Any] = {
        "workspace": "work",
        "data": {"source": "image_folder", "root": "images", "test_fraction": 0.2},
        "views": {"count": 3, "crop": {"scale": [0.5, 1.0]}, "flip": 0.5},
        "teachers": [
            {
                "name": "fruit",
                "builder": BUILDER,
                "builder_args": {"width": 8, "in_channels": 3},
                "weights": "fruit.safetensors",
                "classes": list(reversed(CLASSES)),
                "input": {"size": 24},
                "batch_size": 4,
            }
        ],
        "labels": {"k": 3, "temperatures": [1.0, 2.0], "shard_rows": 8, "chunk_rows": 4},
        "student": {"objective": {"name": "soft_labels", "temperature": 2.0}},
    }
    (root / "project.yaml").write_text(yaml.safe_dump(config))
    label(root)
    return root


@pytest.fixture
def root(template: Path, tmp_path: Path) -> Path:
    """A copy, with the times of its files."""
    shutil.copytree(template, tmp_path / "project")
    return tmp_path / "project"


def label(root: Path, *overrides: str, weights: str | None = None) -> SoftLabelStore:
    """Label what is missing; with `weights`, by a network other than the store says."""
    project = load_project(root / "project.yaml", overrides)
    update = update_manifest(project)
    space, manifest = update.label_space, update.manifest
    spec = resolve_teacher(project, project.teachers[0], space, manifest)
    schema = store_schema(project, spec, space, manifest, TRAIN)
    store = open_or_create(project, schema, space)
    work = missing_work(project, schema, spec, manifest)
    if weights is not None:
        shutil.move(root / "fruit.safetensors", root / "aside")
        shutil.copy(root / weights, root / "fruit.safetensors")
    label_shards(project, spec, manifest, store, work)
    if weights is not None:
        shutil.move(root / "aside", root / "fruit.safetensors")
    return store


def audit(root: Path, *overrides: str, **options: Any) -> LabelAudit:
    project = load_project(root / "project.yaml", overrides)
    update = update_manifest(project)
    store = label(root, *overrides)
    return audit_store(project, "fruit", update.label_space, update.manifest, store, **options)


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("labels.precision=exact", "labels.k=4"),
        ("labels.activation=sigmoid", "student.objective={name: hard_labels}"),
        ("views.mix={kind: mixup, alpha: 0.8}",),
        ("labels.selection=top_p", "labels.top_p=0.8", "labels.k=4"),
    ],
)
def test_a_teacher_agrees_with_its_own_labels(root: Path, overrides: tuple[str, ...]) -> None:
    """Every label is within tolerance though the batches differ, and the KL is nearly zero."""
    found = audit(root, *overrides)
    assert found.problems == ()
    assert found.wrong == 0
    assert found.checked >= 3 * 20
    assert found.same_codes > 0.95
    assert max(found.mean_kl.values()) < 1e-4
    assert set(found.mean_kl) == set(found.max_kl) == {1.0, 2.0}


DRAWN = ("labels.selection=sampled", "labels.k=24", "labels.temperatures=[2.0]")


def test_a_teacher_agrees_with_its_own_draws(root: Path) -> None:
    """Drawn labels are drawn again from the same bits; their KL is the noise of 24 draws."""
    found = audit(root, *DRAWN)
    assert found.problems == ()
    assert found.checked >= 3 * 20
    assert found.same_codes > 0.95
    assert 1e-3 < found.mean_kl[2.0] < (len(CLASSES) - 1) / 24


@pytest.mark.parametrize(
    "overrides", [DRAWN, ("labels.selection=top_p", "labels.top_p=0.8", "labels.k=4")]
)
def test_other_selections_of_other_weights_are_found(
    root: Path, overrides: tuple[str, ...]
) -> None:
    """Draws and nuclei of a network other than the store says are found too."""
    shutil.rmtree(root / "work" / "labels")
    write_weights(root / "other.safetensors", seed=9)
    label(root, *overrides, weights="other.safetensors")
    found = audit(root, *overrides)
    assert found.wrong > 0.7 * found.checked
    assert "sampled labels are not what the teacher says now" in found.problems[0]


def test_the_sample_is_as_large_as_asked_and_spread(root: Path) -> None:
    """So many labels, and no shard is left out while another gives two."""
    shards = int((label(root).commits[:, :, 0] > 0).sum())
    assert audit(root, sample=5).checked == 5
    store = label(root)
    from pipeline.teachers.audit import sample_labels

    usable = np.ones(store.schema.num_rows, np.bool_)
    drawn, damaged = sample_labels(store, usable, shards, seed=3)
    places = set(zip(drawn.views.tolist(), (drawn.rows // 8).tolist(), strict=True))
    assert damaged == {}
    assert len(places) == len(drawn.rows) == shards


def test_labels_of_other_weights_are_found(root: Path) -> None:
    """A store that claims weights which did not make it fails; row, view and both answers shown."""
    shutil.rmtree(root / "work" / "labels")
    write_weights(root / "other.safetensors", seed=9)
    label(root, weights="other.safetensors")
    found = audit(root)
    assert found.wrong > 0.8 * found.checked
    assert found.mean_kl[1.0] > 0.1
    (problem,) = found.problems
    for part in (f"{found.wrong} of {found.checked} sampled labels", "row ", "view ", "all/"):
        assert part in problem
    assert "expected" in problem
    assert "delete" in problem


def test_images_that_changed_under_their_stamps_are_found(root: Path) -> None:
    """Other pixels with the size and time of before: the digest of the manifest tells."""
    path = root / "images" / "pear" / "3.png"
    before = path.stat()
    write_image(path, seed=999)
    path.write_bytes(path.read_bytes()[: before.st_size].ljust(before.st_size, b"\0"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    found = audit(root)
    (problem,) = found.problems
    assert "1 of" in problem
    assert "'pear/3.png'" in problem


def test_a_store_of_other_settings_is_not_compared(root: Path) -> None:
    """New weights on disk: the store is stale, not wrong, and the way out is `label`."""
    project = load_project(root / "project.yaml")
    update = update_manifest(project)
    store = label(root)
    write_weights(root / "fruit.safetensors", seed=4)
    found = audit_store(project, "fruit", update.label_space, update.manifest, store)
    assert found.checked == 0
    (problem,) = found.problems
    assert "another weights" in problem
    assert "`concentrate label`" in problem


def test_rows_that_are_gone_are_not_drawn(root: Path) -> None:
    """A retired row keeps its labels, and nobody asks for its image."""
    gone = sorted((root / "images" / "fig").glob("*.png"))[:5]
    for path in gone:
        path.unlink()
    found = audit(root)
    assert found.problems == ()
    assert found.checked > 0


def test_a_damaged_shard_is_named_with_its_place(root: Path) -> None:
    """What cannot be read is a problem of its own; the other labels are compared."""
    store = label(root)
    view, shard = (int(i) for i in np.argwhere(store.commits[:, :, 0] > 0)[0])
    file = shard_file(store.path, "gaps", view, shard)
    content = bytearray(file.read_bytes())
    content[20] ^= 4
    file.write_bytes(content)
    found = audit(root)
    assert found.damaged == ((view, shard),)
    assert f"array gaps, view {view}, shard {shard}" in found.problems[0]
    assert found.wrong == 0
    assert found.checked > 0
