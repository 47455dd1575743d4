from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.config import Project
from pipeline.data import load_label_space, load_manifest, update_manifest
from pipeline.data.image_folder import ImageFolderSource
from pipeline.data.manifest_lock import exclusive
from storage_schemas.errors import DataError, ManifestError
from storage_schemas.manifest import TRAIN

on_both = pytest.mark.parametrize("location", ["local", "s3"], indirect=True)


def put(root: Path, path: str, value: int = 0) -> Path:
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4), value).save(target)
    return target


@pytest.fixture
def images(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    paths = ("cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png", "fox/1.png")
    for number, path in enumerate(paths):
        put(root, path, number)
    return root


@pytest.fixture
def project(location: Path, images: Path) -> Project:
    return Project.model_validate(
        {
            "workspace": str(location / "run"),
            "data": {"source": "image_folder", "root": images, "test_fraction": 0.0},
            "teachers": [{"name": "all", "builder": "b", "classes": {"vertical": "all"}}],
        }
    )


def quarantine(project: Project) -> dict[str, str]:
    with (project.workspace / "data" / "quarantine.csv").open(newline="") as file:
        return {row["path"]: row["reason"] for row in csv.DictReader(file)}


def folder(project: Project) -> Path:
    return project.workspace / "data" / "manifest"


@on_both
def test_first_update_numbers_all_samples(project: Project) -> None:
    """Rows are sorted by vertical, class and key; what is loaded equals what was built."""
    update = update_manifest(project)
    assert update.manifest.keys.tolist() == [
        "cat/1.png",
        "cat/2.png",
        "dog/1.png",
        "dog/2.png",
        "fox/1.png",
    ]
    assert update.label_space.classes == ("all/cat", "all/dog", "all/fox")
    assert update.manifest.labels.tolist() == [0, 0, 1, 1, 2]
    assert (update.added, update.retired, update.unchanged, update.quarantined) == (5, 0, 0, 0)
    loaded = load_manifest(project.workspace)
    for name in ("keys", "labels", "splits", "digests", "appends", "retired"):
        assert np.array_equal(getattr(loaded, name), getattr(update.manifest, name))
    assert loaded.chains == update.manifest.chains
    assert load_label_space(project.workspace) == update.label_space


def test_same_data_give_the_same_digest(project: Project, tmp_path: Path) -> None:
    """A manifest built anew from the same images has the same chain."""
    other = project.model_copy(update={"workspace": tmp_path / "other"})
    assert update_manifest(project).manifest.digest == update_manifest(other).manifest.digest


@on_both
def test_second_update_reads_nothing(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unchanged stamps: no file is opened, nothing is added."""
    first = update_manifest(project)

    def refuse(self: ImageFolderSource, key: str) -> bytes:
        raise AssertionError(key)

    monkeypatch.setattr(ImageFolderSource, "content_digest", refuse)
    monkeypatch.setattr(ImageFolderSource, "load", refuse)
    second = update_manifest(project)
    assert (second.unchanged, second.added, second.retired) == (5, 0, 0)
    assert second.manifest.digest == first.manifest.digest


def test_touched_file_keeps_its_row_and_is_not_decoded(
    project: Project, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another time with the same bytes is no change."""
    first = update_manifest(project)
    os.utime(images / "cat/1.png", ns=(1, 1))
    loads: list[str] = []
    monkeypatch.setattr(ImageFolderSource, "load", lambda self, key: loads.append(key))
    second = update_manifest(project)
    assert second.unchanged == 5
    assert second.manifest.digest == first.manifest.digest
    assert loads == []


@on_both
def test_lost_stamps_cost_time_only(project: Project) -> None:
    """The stamp cache is safe to delete or damage."""
    first = update_manifest(project)
    (folder(project) / "stamps.parquet").write_bytes(b"nonsense")
    assert update_manifest(project).manifest.digest == first.manifest.digest
    (folder(project) / "stamps.parquet").unlink()
    assert update_manifest(project).unchanged == 5


@on_both
def test_added_changed_removed_and_renamed_files(project: Project, images: Path) -> None:
    """Rows only grow: what goes is retired, what changes gets a new row, the chain is kept."""
    first = update_manifest(project).manifest
    put(images, "bee/1.png", 9)
    put(images, "cat/1.png", 77)
    (images / "dog/1.png").unlink()
    (images / "fox/1.png").rename(images / "fox/renamed.png")
    update = update_manifest(project)
    second = update.manifest
    assert second.has_prefix(first.digest, len(first))
    assert second.keys[:5].tolist() == first.keys.tolist()
    assert second.keys[5:].tolist() == ["bee/1.png", "cat/1.png", "fox/renamed.png"]
    assert set(np.flatnonzero(second.retired)) == {0, 2, 4}
    assert second.rows(TRAIN).tolist() == [1, 3, 5, 6, 7]
    assert (update.added, update.retired, update.unchanged) == (3, 3, 2)
    assert second.appends.tolist() == [0] * 5 + [1] * 3
    loaded = load_manifest(project.workspace)
    assert np.array_equal(loaded.retired, second.retired)
    assert loaded.digest == second.digest


def test_label_space_grows_at_the_end(project: Project, images: Path) -> None:
    """A class that sorts first still comes last, and one that vanished keeps its id."""
    update_manifest(project)
    put(images, "ant/1.png", 8)
    (images / "dog/1.png").unlink()
    (images / "dog/2.png").unlink()
    space = update_manifest(project).label_space
    assert space.classes == ("all/cat", "all/dog", "all/fox", "all/ant")
    assert load_label_space(project.workspace) == space


def test_sample_that_comes_back_gets_its_own_row_again(project: Project, images: Path) -> None:
    """A folder that was away for a while costs no label: equal content, same row."""
    first = update_manifest(project).manifest
    (images / "dog").rename(images.parent / "away")
    assert update_manifest(project).retired == 2
    (images.parent / "away").rename(images / "dog")
    update = update_manifest(project)
    assert (update.revived, update.added, update.retired, update.unchanged) == (2, 0, 0, 3)
    assert not update.manifest.retired.any()
    assert update.manifest.digest == first.digest


def test_split_change_gives_new_rows(project: Project) -> None:
    """A sample that moves to the test split is another row: labels were for training."""
    update_manifest(project)
    data = project.data.model_copy(update={"test_fraction": 1.0})
    update = update_manifest(project.model_copy(update={"data": data}))
    assert (update.added, update.retired) == (5, 5)


def test_unreadable_files_go_to_quarantine(project: Project, images: Path) -> None:
    """Truncated, empty, foreign and too large files are listed with path and reason, not fatal."""
    whole = put(images, "cat/big.png").read_bytes()
    (images / "cat/big.png").unlink()
    (images / "cat/cut.png").write_bytes(whole[: len(whole) // 2])
    (images / "cat/empty.jpg").touch()
    (images / "cat/text.png").write_text("hello, \n world")
    bomb = bytearray(whole)
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2
    (images / "cat/bomb.png").write_bytes(bomb)
    update = update_manifest(project)
    found = quarantine(project)
    assert set(found) == {"cat/cut.png", "cat/empty.jpg", "cat/text.png", "cat/bomb.png"}
    assert all(str(images / path) in reason for path, reason in found.items())
    assert (update.quarantined, update.added) == (4, 5)
    assert not set(found) & set(update.manifest.keys)


@on_both
def test_mended_file_leaves_quarantine(project: Project, images: Path) -> None:
    """A file that was unreadable and is repaired becomes a row."""
    (images / "cat/3.png").touch()
    assert update_manifest(project).quarantined == 1
    put(images, "cat/3.png", 3)
    update = update_manifest(project)
    assert (update.quarantined, update.added) == (0, 1)
    assert quarantine(project) == {}


def test_file_that_decays_is_retired(project: Project, images: Path) -> None:
    """A good file that no longer decodes loses its row and is listed."""
    update_manifest(project)
    (images / "fox/1.png").write_bytes(b"")
    update = update_manifest(project)
    assert (update.retired, update.quarantined) == (1, 1)
    assert "fox/1.png" in quarantine(project)


def test_nothing_readable_is_an_error_and_retires_nothing(project: Project, images: Path) -> None:
    """An empty or wholly unreadable source leaves the manifest as it was."""
    first = update_manifest(project).manifest
    paths = list(images.rglob("*.png"))
    for path in paths:
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"none of the 5 samples .* empty"):
        update_manifest(project)
    for path in paths:
        path.unlink()
    with pytest.raises(DataError, match="holds no image"):
        update_manifest(project)
    assert load_manifest(project.workspace).rows().tolist() == first.rows().tolist()


def test_progress_counts_what_is_read(project: Project) -> None:
    """Progress ends at the total; there is none when nothing is read."""
    seen: list[tuple[int, int]] = []
    update_manifest(project, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (5, 5)
    seen.clear()
    update_manifest(project, progress=lambda done, total: seen.append((done, total)))
    assert seen == []


def test_missing_manifest_says_what_to_do(tmp_path: Path) -> None:
    """Loading before the first update names the command."""
    with pytest.raises(ManifestError, match="concentrate run"):
        load_manifest(tmp_path)
    with pytest.raises(ManifestError, match="concentrate run"):
        load_label_space(tmp_path)


def tamper_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@on_both
@pytest.mark.parametrize(
    "tamper",
    [
        lambda data: tamper_json(data / "manifest" / "manifest.json", retired=[1]),
        lambda data: tamper_json(data / "manifest" / "manifest.json", version=99),
        lambda data: (data / "manifest" / "manifest.json").write_text("{"),
        lambda data: (data / "manifest" / "part-00000.parquet").write_bytes(b""),
        lambda data: (data / "manifest" / "part-00001.parquet").unlink(),
        lambda data: (data / "manifest" / "part-00001.parquet").write_bytes(
            (data / "manifest" / "part-00000.parquet").read_bytes()
        ),
    ],
    ids=["retired", "version", "torn json", "empty part", "lost part", "swapped part"],
)
def test_tampering_is_detected(project: Project, images: Path, tamper: object) -> None:
    """Whatever is altered by hand, loading refuses."""
    update_manifest(project)
    put(images, "cat/9.png", 9)
    update_manifest(project)
    tamper(project.workspace / "data")
    with pytest.raises(ManifestError):
        load_manifest(project.workspace)


def test_rewritten_part_is_detected(project: Project, images: Path, tmp_path: Path) -> None:
    """A well-formed part with one other key breaks the chain."""
    update_manifest(project)
    (images / "cat/1.png").rename(images / "cat/0.png")
    other = project.model_copy(update={"workspace": tmp_path / "other"})
    update_manifest(other)
    os.replace(folder(other) / "part-00000.parquet", folder(project) / "part-00000.parquet")
    with pytest.raises(ManifestError, match="append 0"):
        load_manifest(project.workspace)


@pytest.mark.parametrize("classes", [["all/dog", "all/cat", "all/fox"], ["all/cat"]])
def test_reordered_label_space_is_detected(project: Project, classes: list[str]) -> None:
    """Classes of the manifest that were reordered or removed are refused."""
    update_manifest(project)
    tamper_json(project.workspace / "data" / "label_space.json", classes=classes)
    with pytest.raises(ManifestError, match="only ever appended"):
        load_label_space(project.workspace)


@on_both
def test_crash_before_the_index_leaves_the_old_manifest(
    project: Project, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """manifest.json is written last; an update that dies before it can simply be repeated."""
    from pipeline.data import manifest_files

    first = update_manifest(project).manifest
    put(images, "ant/1.png", 8)
    write = manifest_files.write_durably

    def die_at_index(path: Path, content: bytes) -> None:
        if path.name == "manifest.json":
            raise KeyboardInterrupt
        write(path, content)

    monkeypatch.setattr(manifest_files, "write_durably", die_at_index)
    with pytest.raises(KeyboardInterrupt):
        update_manifest(project)
    monkeypatch.undo()
    assert load_manifest(project.workspace).digest == first.digest
    load_label_space(project.workspace)
    update = update_manifest(project)
    assert (update.added, update.unchanged) == (1, 5)
    assert load_manifest(project.workspace).digest == update.manifest.digest


@on_both
def test_two_updates_at_once_are_refused(project: Project) -> None:
    """A second update of the same workspace does not start."""
    with (
        exclusive(project.workspace),
        pytest.raises(ManifestError, match=r"another process|being written"),
    ):
        update_manifest(project)
    assert update_manifest(project).added == 5


def test_unlabelled_images_are_rows_without_a_class(project: Project, images: Path) -> None:
    """Files outside class folders come last and have label -1."""
    put(images, "a.png", 50)
    manifest = update_manifest(project).manifest
    assert manifest.keys[-1] == "a.png"
    assert manifest.labels[-1] == -1
