from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config import Project, PythonData
from pipeline.data import open_source, update_manifest
from storage_schemas.errors import DataError

MODULE = """
from PIL import Image
from pipeline.data.decoding import image_digest
from pipeline.data.source import Sample, Source


class Squares(Source):
    def __init__(self, names, mode="L", fail=()):
        self.names, self.mode, self.fail = names, mode, fail

    def samples(self):
        for number, name in enumerate(self.names):
            yield Sample(key=str(number), class_name=name, split=number % 2)

    def load(self, key):
        if key in self.fail:
            raise RuntimeError("sensor was off")
        return Image.new(self.mode, (4, 4))

    def content_digest(self, key):
        return image_digest(Image.new("L", (4, 4), int(key)))

    def stamp(self, key):
        return None


def wrong():
    return 3
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "squares_of_a_user.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)


def project(tmp_path: Path, **settings: object) -> Project:
    data = {"source": "python", "callable": "squares_of_a_user:Squares", **settings}
    return Project.model_validate(
        {
            "workspace": tmp_path / "run",
            "data": data,
            "teachers": [{"name": "a", "builder": "b", "classes": {"vertical": "all"}}],
        }
    )


def test_samples_of_a_callable_become_rows(tmp_path: Path) -> None:
    """Qualified names stay, bare ones go to "all", None is unlabelled."""
    update = update_manifest(project(tmp_path, args={"names": ["x/a", "b", None]}))
    assert update.label_space.classes == ("all/b", "x/a")
    assert update.manifest.keys.tolist() == ["1", "0", "2"]
    assert update.manifest.labels.tolist() == [0, 1, -1]
    assert update_manifest(project(tmp_path, args={"names": ["x/a", "b", None]})).unchanged == 3


def test_verticals_place_bare_names(tmp_path: Path) -> None:
    """The mapping of the project file is applied to the callable's class names."""
    settings = {"args": {"names": ["a", "b"]}, "verticals": {"v": ["a"], "w": ["b"]}}
    source = open_source(project(tmp_path, **settings).data, tmp_path)
    assert [s.class_name for s in source.samples()] == ["v/a", "w/b"]


def test_failing_and_wrong_images_are_quarantined(tmp_path: Path) -> None:
    """An error of the user's code on one sample is not fatal; a wrong mode is named."""
    settings = {"args": {"names": ["a", "a"], "fail": ["1"]}}
    update = update_manifest(project(tmp_path, **settings))
    assert (update.added, update.quarantined) == (1, 1)
    text = (tmp_path / "run" / "data" / "quarantine.csv").read_text()
    assert "1: RuntimeError: sensor was off" in text
    with pytest.raises(DataError, match="must return mode 'L' or 'RGB', got 'RGBA'"):
        update_manifest(project(tmp_path / "2", args={"names": ["a"], "mode": "RGBA"}))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "module:function"),
        ("no_such_module_here:f", "cannot be imported"),
        ("squares_of_a_user:nothing", "cannot be imported"),
        ("squares_of_a_user:wrong", "must return a pipeline.data.Source, got int"),
        ("squares_of_a_user:Squares", "refused data.args"),
    ],
)
def test_bad_callables_are_refused(tmp_path: Path, name: str, message: str) -> None:
    """What cannot be found, called or used is an error that says which."""
    config = PythonData.model_validate({"source": "python", "callable": name})
    with pytest.raises(DataError, match=message):
        open_source(config, tmp_path)
