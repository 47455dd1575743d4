"""Names, records and links from outside: none of them leads out of the workspace."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.config import load_project
from pipeline.data import load_label_space, load_manifest, open_source, update_manifest
from pipeline.data.manifest import quarantine_path
from pipeline.store import create_soft_labels, open_soft_labels
from pipeline.store.layout import shard_layout
from pipeline.store.published import publish, published_cost, published_path
from pipeline.workspace import Workspace, inside, read_record
from storage_schemas.errors import ConcentrateError, ManifestError, StoreError
from storage_schemas.label_space import canonical_digest
from storage_schemas.manifest import TRAIN
from storage_schemas.soft_labels import SoftLabelSchema

GOOD = "0123456789abcdef"


def schema_of() -> SoftLabelSchema:
    shard_rows, chunk_rows = shard_layout(8, 8, 8)
    return SoftLabelSchema(
        teacher="birds",
        num_rows=8,
        num_views=1,
        k=2,
        num_classes=3,
        shard_rows=shard_rows,
        chunk_rows=chunk_rows,
        classes=("a/0", "a/1", "a/2"),
        global_ids=(0, 1, 2),
    )


@pytest.mark.parametrize(
    "name", ["../../secret", "/etc", "..", ".", "", "a/b", GOOD + "\n", "0" * 300, 7, [GOOD], {}]
)
def test_a_record_cannot_name_a_store_elsewhere(tmp_path: Path, name: Any) -> None:
    """published.json with a path, an absolute one or no name at all is refused, and said where."""
    workspace = Workspace(tmp_path)
    publish(workspace, "birds", {"train": GOOD}, {"parameters": 3})
    assert published_path(workspace, "birds", TRAIN) == tmp_path / f"labels/birds/{GOOD}.zarr"
    record = tmp_path / "labels" / "birds" / "published.json"
    record.write_text(json.dumps({"stores": {"train": name}, "cost": {"parameters": "x"}}))
    with pytest.raises(StoreError, match=r"published\.json.*16 hex digits"):
        published_path(workspace, "birds", TRAIN)
    assert published_cost(workspace, "birds") == {}


@pytest.mark.parametrize(
    "content", ["", "[", "[1]", "7", "{}", '{"stores": null}', "[" * 100_000, '{"cost": [1]}']
)
def test_a_torn_record_is_no_record(tmp_path: Path, content: str) -> None:
    """Whatever else lies there counts as nothing published, or is refused; never a traceback."""
    workspace = Workspace(tmp_path)
    publish(workspace, "birds", {"train": GOOD}, {})
    (tmp_path / "labels" / "birds" / "published.json").write_text(content)
    assert published_path(workspace, "birds", TRAIN) is None
    assert published_cost(workspace, "birds") == {}


@pytest.mark.parametrize("link", ["labels", "labels/birds", f"labels/birds/{GOOD}.zarr"])
def test_links_out_of_the_workspace_are_refused(tmp_path: Path, link: str) -> None:
    """A folder of the workspace that is a link to elsewhere is neither read nor written."""
    (tmp_path / "elsewhere").mkdir()
    place = tmp_path / "work" / link
    place.parent.mkdir(parents=True)
    place.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="leads out of"):
        Workspace(tmp_path / "work").labels("birds", GOOD)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_other_links_are_followed(tmp_path: Path) -> None:
    """The workspace itself may be a link, and so may a place inside it that stays there."""
    (tmp_path / "disk" / "real").mkdir(parents=True)
    (tmp_path / "work").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "labels").symlink_to(tmp_path / "work" / "real")
    workspace = Workspace(tmp_path / "work")
    assert workspace.labels("birds", GOOD).parent.name == "birds"
    (tmp_path / "disk" / "loop").symlink_to(tmp_path / "disk" / "loop")
    inside(workspace.root, workspace.root / "loop" / "deeper")


@pytest.mark.parametrize("link", ["ids", "ids/zarr.json", "commits"])
def test_a_store_made_of_links_does_not_open(tmp_path: Path, link: str) -> None:
    """Arrays and metadata that lie elsewhere are refused, though their content fits."""
    store = create_soft_labels(tmp_path / "work" / "s.zarr", schema_of())
    shutil.move(store.path / link, tmp_path / "moved")
    (store.path / link).symlink_to(tmp_path / "moved")
    with pytest.raises(StoreError, match="leads out of"):
        open_soft_labels(store.path)


def test_a_shard_is_not_written_through_a_link(tmp_path: Path) -> None:
    """A folder of shards that was replaced by a link keeps what is behind the link unharmed."""
    store = create_soft_labels(tmp_path / "work" / "s.zarr", schema_of())
    (tmp_path / "victim" / "0").mkdir(parents=True)
    (tmp_path / "victim" / "0" / "0").write_text("precious")
    ids, gaps = store.empty_shard()
    ids[:], gaps[:] = np.array([0, 1], ids.dtype), 1
    for name in ("gaps", "commits"):
        (store.path / name / "c").mkdir(exist_ok=True)
        (store.path / name / "c" / "0").symlink_to(tmp_path / "victim")
        with pytest.raises(StoreError, match="leads out of"):
            store.write_shard(0, 0, ids, gaps)
        (store.path / name / "c" / "0").unlink()
    assert (tmp_path / "victim" / "0" / "0").read_text() == "precious"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project of two classes, listed."""
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("RGB", (4, 4), (len(name), 0, 0)).save(tmp_path / "images" / name / "1.png")
    (tmp_path / "project.yaml").write_text(
        "workspace: work\n"
        "data: {source: image_folder, root: images}\n"
        "teachers: [{name: all, builder: 'torchvision:resnet18', classes: {vertical: all}}]\n"
    )
    update_manifest(load_project(tmp_path / "project.yaml"))
    return tmp_path


def sign(path: Path, change: Any) -> None:
    """Change manifest.json and sign it, as its writer would."""
    index = json.loads(path.read_text())
    del index["digest"]
    change(index)
    path.write_text(json.dumps(index | {"digest": canonical_digest(index)}))


@pytest.mark.parametrize(
    "change",
    [
        lambda index: index["appends"][0].update(part="../../../secret.parquet"),
        lambda index: index["appends"][0].update(part="/etc/passwd"),
        lambda index: index["appends"][0].update(rows=2**62),
        lambda index: index["appends"][0].update(rows=-1),
        lambda index: index["appends"][0].update(chain=None),
        lambda index: index.update(appends=[]),
        lambda index: index.update(appends={"0": 1}),
        lambda index: index.update(retired=[99]),
        lambda index: index.update(retired=[-1]),
        lambda index: index.update(retired="all"),
        lambda index: index.update(num_classes="two"),
        lambda index: index.update(num_classes=1),
        lambda index: index.pop("appends"),
    ],
)
def test_a_signed_manifest_cannot_ask_for_what_it_may_not_have(root: Path, change: Any) -> None:
    """Parts elsewhere, impossible rows and fields of another type are refused with the field."""
    sign(root / "work" / "data" / "manifest" / "manifest.json", change)
    with pytest.raises(ManifestError, match="restore it from a backup"):
        (load_manifest(root / "work"), load_label_space(root / "work"))


def test_a_manifest_of_another_schema_is_refused(root: Path) -> None:
    """A part with other columns, or with a class that is not there, is refused."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    part = root / "work" / "data" / "manifest" / "part-00000.parquet"
    table = pq.read_table(part)
    rows = len(table)
    for column in (pa.nulls(rows, pa.int32()), pa.array(["x"] * rows)):
        pq.write_table(table.set_column(1, "label", column), part)
        with pytest.raises(ManifestError, match="must hold columns"):
            load_manifest(root / "work")


@pytest.mark.parametrize(
    "value",
    [
        {"classes": 5},
        {"classes": [1]},
        {"classes": ["a/b"], "parents": [1]},
        {"classes": ["a/b"], "parents": {"a/b": "a"}},
        {"classes": ["a/\x1b[31m"]},
        [1],
    ],
)
def test_a_label_space_of_other_types_is_refused(root: Path, value: Any) -> None:
    """Whatever label_space.json holds, the error is ours."""
    content = {"version": 1} | value if isinstance(value, dict) else value
    (root / "work" / "data" / "label_space.json").write_text(json.dumps(content))
    with pytest.raises(ConcentrateError, match="label_space"):
        load_label_space(root / "work")


def test_images_that_would_hang_or_fill_the_memory_go_to_quarantine(root: Path) -> None:
    """A pipe, a link to a device and a sparse terabyte are listed; the other images are used."""
    folder = root / "images" / "cat"
    os.mkfifo(folder / "pipe.png")
    (folder / "endless.png").symlink_to("/dev/zero")
    with (folder / "sparse.png").open("wb") as file:
        file.truncate(1 << 40)
    (folder / "loop").symlink_to(folder)
    (root / "images" / "=cmd|x.png").write_bytes(b"no image")
    (folder / "\x1b[31mred.png").write_bytes(b"no image")
    update = update_manifest(load_project(root / "project.yaml"))
    assert update.quarantined == 6
    assert len(update.manifest.rows()) == 2
    text = quarantine_path(root / "work").read_text(encoding="utf-8")
    for reason in ("not a regular file", "a link that leaves", "at most 536870912 bytes"):
        assert reason in text
    assert "\x1b" not in text
    assert "\n./=cmd|x.png," in text


def test_keys_of_a_hostile_manifest_stay_in_the_data(root: Path) -> None:
    """A row whose key climbs out of the folder, or is absolute, is refused when it is read."""
    (root / "secret.png").write_bytes((root / "images" / "cat" / "1.png").read_bytes())
    project = load_project(root / "project.yaml")
    source = open_source(project.data, project.workspace)
    for key in ("../secret.png", str(root / "secret.png"), "cat/../../secret.png"):
        with pytest.raises(ConcentrateError, match="leaves"):
            source.load(key)


def test_a_record_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    """Nothing in a workspace can keep a reader for ever."""
    os.mkfifo(tmp_path / "record.json")
    assert read_record(tmp_path / "record.json") is None
