from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
from PIL import Image

from pipeline.config import ImageFolderData
from pipeline.data.image_folder import ImageFolderSource, open_image_folder
from storage_schemas.errors import DataError, UnreadableImageError
from storage_schemas.manifest import TEST, TRAIN


def put(root: Path, *paths: str) -> None:
    for number, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), number).save(root / path, "PNG")


def opened(root: Path, **settings: object) -> ImageFolderSource:
    return open_image_folder(
        ImageFolderData.model_validate({"source": "image_folder", "root": root, **settings})
    )


def classes(source: ImageFolderSource) -> dict[str, str | None]:
    return {sample.key: sample.class_name for sample in source.samples()}


def test_flat_folders_are_one_vertical(tmp_path: Path) -> None:
    """Class folders, also with folders inside, go to "all"; loose files are unlabelled."""
    put(tmp_path, "cat/1.png", "cat/sub/2.PNG", "dog/1.png", "loose.png")
    assert classes(opened(tmp_path)) == {
        "cat/1.png": "all/cat",
        "cat/sub/2.PNG": "all/cat",
        "dog/1.png": "all/dog",
        "loose.png": None,
    }


def test_flat_folders_with_a_mapping(tmp_path: Path) -> None:
    """The mapping names the verticals; a folder it forgets is an error."""
    put(tmp_path, "cat/1.png", "oak/1.png")
    mapped = opened(tmp_path, verticals={"animals": ["cat"], "trees": ["oak"]})
    assert set(classes(mapped).values()) == {"animals/cat", "trees/oak"}
    with pytest.raises(DataError, match="oak"):
        classes(opened(tmp_path, verticals={"animals": ["cat"]}))


def test_vertical_folders(tmp_path: Path) -> None:
    """Depth 1 reads vertical/class/image."""
    put(tmp_path, "birds/robin/1.png", "trees/oak/1.png")
    assert set(classes(opened(tmp_path, vertical_depth=1)).values()) == {
        "birds/robin",
        "trees/oak",
    }


def test_image_in_a_vertical_folder_does_not_load(tmp_path: Path) -> None:
    """At depth 1 an image outside any class folder is refused with its path."""
    put(tmp_path, "birds/1.png")
    source = opened(tmp_path, vertical_depth=1)
    assert list(classes(source)) == ["birds/1.png"]
    with pytest.raises(UnreadableImageError, match=r"birds/1\.png"):
        source.load("birds/1.png")


def test_hidden_and_foreign_files_are_skipped(tmp_path: Path) -> None:
    """Dot files, dot folders and files that are no images are not listed."""
    put(tmp_path, "cat/1.png", "cat/.2.png", ".git/3.png")
    (tmp_path / "cat" / "notes.txt").write_text("x")
    assert list(classes(opened(tmp_path))) == ["cat/1.png"]


def test_links_out_of_the_root_do_not_load(tmp_path: Path) -> None:
    """A link inside the root is followed; one that leaves it, or a linked folder, is refused."""
    root = tmp_path / "root"
    put(root, "cat/1.png")
    put(tmp_path, "secret/2.png")
    (root / "cat" / "inside.png").symlink_to(root / "cat" / "1.png")
    (root / "cat" / "outside.png").symlink_to(tmp_path / "secret" / "2.png")
    (root / "cat" / "dangling.png").symlink_to(root / "nothing.png")
    (root / "elsewhere").symlink_to(tmp_path / "secret")
    source = opened(root)
    assert source.load("cat/inside.png").size == (4, 4)
    for key, reason in (
        ("cat/outside.png", "leaves"),
        ("cat/dangling.png", "No such file"),
        ("elsewhere", "leaves"),
    ):
        assert key in classes(source)
        with pytest.raises(UnreadableImageError, match=reason):
            source.load(key)
        with pytest.raises(UnreadableImageError, match=reason):
            source.content_digest(key)


def test_split_by_key_is_stable(tmp_path: Path) -> None:
    """More files leave the split of the first ones as it was."""
    put(tmp_path, *(f"cat/{number}.png" for number in range(40)))
    before = {s.key: s.split for s in opened(tmp_path, test_fraction=0.3).samples()}
    put(tmp_path, *(f"dog/{number}.png" for number in range(40)))
    after = {s.key: s.split for s in opened(tmp_path, test_fraction=0.3).samples()}
    assert {key: after[key] for key in before} == before
    assert set(before.values()) == {TRAIN, TEST}


def test_test_root_is_the_test_split(tmp_path: Path) -> None:
    """With a test root nothing of the root is held out, and equal paths stay apart."""
    put(tmp_path / "train", "cat/1.png", "cat/2.png")
    put(tmp_path / "test", "cat/1.png")
    source = opened(tmp_path / "train", test_root=tmp_path / "test", test_fraction=1.0)
    assert {s.key: s.split for s in source.samples()} == {
        "cat/1.png": TRAIN,
        "cat/2.png": TRAIN,
        "test:cat/1.png": TEST,
    }
    assert set(classes(source).values()) == {"all/cat"}
    assert source.load("test:cat/1.png").size == (4, 4)


def test_name_that_is_not_utf8_does_not_load(tmp_path: Path) -> None:
    """A file name of raw bytes is listed, and refused with its path."""
    put(tmp_path, "cat/1.png")
    try:
        os.rename(tmp_path / "cat" / "1.png", os.fsencode(tmp_path / "cat") + b"/\xff.png")
    except OSError:
        pytest.skip("this file system refuses such names")
    source = opened(tmp_path)
    (key,) = classes(source)
    with pytest.raises(UnreadableImageError, match="UTF-8"):
        source.content_digest(key)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"root": "missing"}, "must be folders"),
        ({"root": ".", "test_root": "cat"}, "must lie apart"),
        ({"root": ".", "vertical_depth": 1, "verticals": {"a": ["b"]}}, "flat folders"),
    ],
)
def test_impossible_settings_are_refused(
    tmp_path: Path, settings: dict[str, object], message: str
) -> None:
    """A missing root, nested roots, and verticals named twice are errors."""
    put(tmp_path, "cat/1.png")
    paths = {k: tmp_path / str(v) for k, v in settings.items() if k.endswith("root")}
    with pytest.raises(DataError, match=message):
        opened(**{"root": tmp_path} | settings | paths)


def test_digest_and_stamp_follow_the_content(tmp_path: Path) -> None:
    """Other bytes, other digest and stamp; the source survives pickling."""
    put(tmp_path, "cat/1.png")
    source = pickle.loads(pickle.dumps(opened(tmp_path)))
    before = source.content_digest("cat/1.png"), source.stamp("cat/1.png")
    Image.new("L", (9, 9)).save(tmp_path / "cat" / "1.png")
    after = source.content_digest("cat/1.png"), source.stamp("cat/1.png")
    assert len(before[0]) == 16
    assert before[0] != after[0]
    assert before[1] != after[1]
    assert source.stamp("cat/none.png") is None
