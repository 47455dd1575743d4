from __future__ import annotations

import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.config import Project, TorchvisionData
from pipeline.data import open_source, update_manifest
from pipeline.data.torchvision_data import TorchvisionSource, open_torchvision
from storage_schemas.errors import DataError, UnreadableImageError
from storage_schemas.manifest import TEST, TRAIN


def write_idx(path: Path, values: np.ndarray) -> None:
    header = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    path.write_bytes(header + values.astype(np.uint8).tobytes())


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, count in (("train", 20), ("t10k", 10)):
        write_idx(raw / f"{name}-images-idx3-ubyte", rng.integers(0, 256, (count, 28, 28)))
        write_idx(raw / f"{name}-labels-idx1-ubyte", np.arange(count) % 10)
    return tmp_path


def opened(root: Path, dataset: str, **settings: object) -> TorchvisionSource:
    return open_torchvision(
        TorchvisionData.model_validate(
            {"source": "torchvision", "dataset": dataset, "root": root, **settings}
        )
    )


def test_train_and_test_parts_come_from_the_data_set(mnist: Path) -> None:
    """A data set with a `train` argument gives both splits, its names and its images."""
    source = opened(mnist, "MNIST")
    samples = list(source.samples())
    assert [s.split for s in samples] == [TRAIN] * 20 + [TEST] * 10
    assert samples[0].key == "train/000000"
    assert samples[-1].key == "test/000009"
    assert samples[3].class_name == "all/3 - three"
    image = source.load("train/000003")
    assert (image.mode, image.size) == ("L", (28, 28))


def test_verticals_place_the_classes(mnist: Path) -> None:
    """A mapping by the data set's own class names gives verticals."""
    names = [sample.class_name for sample in opened(mnist, "MNIST").samples()][:10]
    bare = [str(name).partition("/")[2] for name in names]
    verticals = {"low": bare[:5], "high": bare[5:]}
    found = {s.class_name for s in opened(mnist, "MNIST", verticals=verticals).samples()}
    assert found == {f"low/{n}" for n in bare[:5]} | {f"high/{n}" for n in bare[5:]}


def test_pinned_part_is_split_by_fraction(mnist: Path) -> None:
    """`args: {train: ...}` reads one part; a stable share of it is held out."""
    samples = list(opened(mnist, "MNIST", args={"train": True}, test_fraction=0.4).samples())
    assert len(samples) == 20
    assert {s.split for s in samples} == {TRAIN, TEST}
    assert {s.key.split("/")[0] for s in samples} == {"train"}


def test_manifest_of_a_torchvision_set(
    mnist: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The manifest holds every image, and a second update reads nothing anew."""
    project = Project.model_validate(
        {
            "workspace": tmp_path_factory.mktemp("run"),
            "data": {"source": "torchvision", "dataset": "MNIST", "root": mnist},
            "teachers": [{"name": "a", "builder": "b", "classes": {"vertical": "all"}}],
        }
    )
    first = update_manifest(project)
    assert (first.added, len(first.label_space)) == (30, 10)
    seen: list[int] = []
    second = update_manifest(project, progress=lambda done, total: seen.append(done))
    assert (second.unchanged, seen) == (30, [])
    write_idx(mnist / "MNIST" / "raw" / "t10k-labels-idx1-ubyte", np.zeros(10))
    third = update_manifest(project)
    assert (third.unchanged, third.added) == (21, 9)


def test_set_without_a_test_part_is_split_by_fraction(tmp_path: Path) -> None:
    """A plain ImageFolder has one part; its class folders are the names."""
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(12):
            Image.new("RGB", (5, 4), (number, 0, 0)).save(tmp_path / name / f"{number}.png")
    source = opened(tmp_path, "ImageFolder", test_fraction=0.3)
    samples = list(source.samples())
    assert {s.class_name for s in samples} == {"all/cat", "all/dog"}
    assert {s.split for s in samples} == {TRAIN, TEST}
    assert source.load(samples[0].key).mode == "RGB"


def test_split_argument_names_the_parts(tmp_path: Path) -> None:
    """Sets with a `split` argument (here DTD) give train and test by that argument."""
    root = tmp_path / "dtd" / "dtd"
    (root / "labels").mkdir(parents=True)
    for name, count in (("banded", 3), ("woven", 3)):
        (root / "images" / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (8, 8), (number, 9, 9)).save(root / "images" / name / f"{number}.jpg")
    (root / "labels" / "train1.txt").write_text("banded/0.jpg\nwoven/0.jpg\nwoven/1.jpg\n")
    (root / "labels" / "test1.txt").write_text("banded/1.jpg\nwoven/2.jpg\n")
    (root / "labels" / "val1.txt").write_text("banded/2.jpg\n")
    samples = list(opened(tmp_path, "DTD").samples())
    assert [s.split for s in samples] == [TRAIN] * 3 + [TEST] * 2
    assert {s.class_name for s in samples} == {"all/banded", "all/woven"}
    (root / "images" / "woven" / "1.jpg").write_bytes(b"broken")
    with pytest.raises(UnreadableImageError, match="DTD train/000002"):
        opened(tmp_path, "DTD").load("train/000002")


def test_pickled_source_leaves_the_data_behind(mnist: Path) -> None:
    """A loader worker gets the settings and opens the data itself."""
    source = opened(mnist, "MNIST")
    before = source.content_digest("test/000004")
    data = pickle.dumps(source)
    assert len(data) < 2000
    assert pickle.loads(data).content_digest("test/000004") == before


@pytest.mark.parametrize(
    ("dataset", "message"),
    [("Nonsense", "must be a class"), ("CIFAR10", "Nothing is downloaded")],
)
def test_what_is_not_there_is_refused(tmp_path: Path, dataset: str, message: str) -> None:
    """An unknown data set, and one that is not on disk, are errors with a remedy."""
    with pytest.raises(DataError, match=message):
        list(opened(tmp_path, dataset).samples())


def test_source_is_opened_by_its_name(mnist: Path, tmp_path: Path) -> None:
    """`source: torchvision` in a project file leads here."""
    config = TorchvisionData(source="torchvision", dataset="MNIST", root=mnist)
    assert isinstance(open_source(config, tmp_path), TorchvisionSource)
    with pytest.raises(DataError, match="must be a folder"):
        opened(tmp_path / "none", "MNIST")
