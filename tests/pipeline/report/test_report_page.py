"""The page as a whole: self-contained, escaped, complete, and never stopped by what is missing."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.report import write_report
from pipeline.store import create_soft_labels
from pipeline.store.published import publish
from pipeline.workspace import Workspace
from storage_schemas.errors import StoreError
from storage_schemas.soft_labels import SoftLabelSchema, encode

WRITTEN = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
HOSTILE = "<script>alert(1)</script>"
VOID = {"meta", "img", "br"}


class _Page(HTMLParser):
    """Tags, attributes and text of a page; fails where tags do not balance."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        assert len(dict(attrs)) == len(attrs), f"{tag} has an attribute twice"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


@pytest.fixture
def write(project, tmp_path):
    def written(evaluation: dict[str, Any]) -> _Page:
        return _Page(write_report(project, evaluation, tmp_path / "report", written=WRITTEN))

    return written


def _assert_contained(page: _Page) -> None:
    assert not {"script", "link", "iframe", "object", "base", "form"} & {t for t, _ in page.tags}
    for tag, attributes in page.tags:
        assert "style" not in attributes
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "xlink:href"):
                assert str(value).startswith(("data:image/", "#")), (tag, value)
    assert "@import" not in page.source
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page.source))


def test_page_is_self_contained(write, evaluation_of):
    """The page loads nothing, runs nothing, and its policy admits just its own style sheet."""
    page = write(evaluation_of())
    _assert_contained(page)
    style = re.search(r"<style>(.*?)</style>", page.source, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    policies = [a["content"] for t, a in page.tags if "http-equiv" in a]
    assert policies == [
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    ]


def test_headline_numbers(write, evaluation_of):
    """Student, control, their difference, classes and parameters are in the page."""
    text = write(evaluation_of()).text
    for expected in ("72.5 %", "70.2 %", "+2.2", "30", "in 3 verticals", "1.33 M", "2.7 M"):
        assert expected in text


def test_hostile_names_stay_text(write, evaluation_of):
    """Names of verticals, classes and files cannot leave the text that they stand in."""
    evaluation = evaluation_of(
        [HOSTILE, '" onload="alert(1)', "$x^{2$", "\u65e5\u672c", "a\u202eb", "c\ud800d"]
    )
    evaluation["samples"][0]["label"] = f"{HOSTILE}/<img src=x onerror=alert(1)>\ud800"
    page = write(evaluation)
    _assert_contained(page)
    assert HOSTILE in page.text
    assert "\u202e" not in page.source


def test_same_input_same_bytes(write, evaluation_of):
    """Two pages of one evaluation at one date are equal."""
    assert write(evaluation_of()).source == write(evaluation_of()).source


def test_ids_are_unique(write, evaluation_of):
    """No id is given twice, though all plots share one document; every reference has its target."""
    page = write(evaluation_of())
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', page.source)) <= set(ids)


@pytest.mark.parametrize("number", [1, 2, 13, 100])
def test_any_number_of_verticals(write, evaluation_of, number):
    """From one vertical to a hundred, with or without a control, some of them without images."""
    evaluation = evaluation_of([f"v{at}" for at in range(number)], control=number % 2 == 0)
    for run in evaluation["runs"]:
        run["verticals"]["v0"] |= {"images": 0, "top1": None, "top5": None, "top1_inside": None}
        run["vertical_confusions"][0] = [0] * number
    page = write(evaluation)
    assert f"v{number - 1}" in page.text
    assert ("Control" in page.text) == (number % 2 == 0)
    assert len(page.source) < 1_000_000


def test_nothing_known(write, evaluation_of):
    """Where every accuracy is missing the page says n/a, and no number is made up."""
    evaluation = evaluation_of(["all"], control=False)
    run = evaluation["runs"][0]
    run |= {"images": 0, "top1": None, "top5": None, "top1_inside": None, "mpvap": float("nan")}
    run["verticals"]["all"] |= {"images": 0, "top1": None, "top5": None, "top1_inside": None}
    run |= {"vertical_confusions": [[0]], "steps": None, "seconds": None, "agreement": {}}
    evaluation |= {"specialists": {}, "samples": []}
    text = write(evaluation).text
    assert "n/a" in text
    assert "nan" not in text


def test_teachers_of_several_verticals(write, evaluation_of):
    """A specialist of two verticals is listed with both, and has no bar of its own."""
    evaluation = evaluation_of()
    evaluation["specialists"] = {
        "animals": {
            "classes": 20,
            "images": 0,
            "top1": None,
            "top5": None,
            "verticals": ["birds", "dogs"],
            "cost": {},
        }
    }
    page = write(evaluation)
    assert "specialists' size unknown" in page.text
    assert not any("swatch-specialist" in (a.get("class") or "") for _, a in page.tags)
    assert re.search(r"animals\s+birds , dogs", page.text)


def test_missing_images_are_said(write, evaluation_of):
    """An image that cannot be read leaves a sentence in its place."""
    assert write(evaluation_of()).text.count("image not available") == 3


def test_images_are_inside(write, evaluation_of, project):
    """A small image is in the page pixel for pixel."""
    Image.new("L", (8, 8), 77).save(project.data.root / "birds" / "0.png")
    images = [a for t, a in write(evaluation_of()).tags if t == "img"]
    assert [image["class"] for image in images] == ["pixels"]
    assert images[0]["alt"]
    assert str(images[0]["src"]).startswith("data:image/png;base64,")


def test_quarantine_is_counted(write, evaluation_of, project):
    """The page counts all files in quarantine and shows the first ones."""
    table = Workspace(project.workspace).data / "quarantine.csv"
    assert "There is no quarantine table" in write(evaluation_of()).text
    table.parent.mkdir(parents=True)
    lines = [f"birds/{at:03d}.jpg,truncated & torn" for at in range(37)]
    table.write_text("\n".join(["path,reason", *lines]) + "\n")
    text = write(evaluation_of()).text
    assert "37 files do not decode" in text
    assert "birds/009.jpg" in text
    assert "birds/010.jpg" not in text


def test_learning_curves_are_drawn(write, evaluation_of, project):
    """Finished rows are drawn; a torn last row and rows that are not finite are left out."""
    folder = project.workspace / "students" / "student" / "0123"
    folder.mkdir(parents=True)
    rows = ["step,epoch,loss,kd_loss", "1,0.5,4,4", "2,1,nan,1", "3,3,2,2", "4,4"]
    (folder / "metrics.csv").write_text("\n".join(rows))
    page = write(evaluation_of())
    assert "Loss of the student over 3 epochs, from 4 to 2" in page.text
    assert "The control has no readable metrics.csv" in page.text


def _store(project: Any, *, damage: bool = False) -> None:
    workspace = Workspace(project.workspace)
    schema = SoftLabelSchema(
        teacher="teacher-0",
        num_rows=60,
        num_views=1,
        k=4,
        num_classes=12,
        temperatures=(1.0,),
        shard_rows=64,
        chunk_rows=64,
        classes=tuple(f"birds/{at}" for at in range(12)),
        global_ids=tuple(range(12)),
        fingerprint_parts={"weights": "abc"},
    )
    store = create_soft_labels(workspace.labels("teacher-0", schema.fingerprint), schema)
    rng = np.random.default_rng(0)
    ids = np.stack([rng.permutation(12)[:4] for _ in range(60)])
    logits = -np.sort(-rng.normal(0, 2, (60, 4)), axis=1)
    store.write_shard(0, 0, *encode(schema, ids, logits, rng.uniform(0, 4, (60, 1))))
    publish(workspace, "teacher-0", {"train": schema.fingerprint}, {})
    if damage:
        for path in (store.path / "gaps").rglob("*"):
            if path.is_file() and path.name != "zarr.json":
                path.write_bytes(b"")


@pytest.mark.parametrize("damage", [False, True])
def test_stores_are_summarised(write, evaluation_of, project, damage):
    """Published stores are drawn and counted; a damaged one is named and stops nothing."""
    _store(project, damage=damage)
    page = write(evaluation_of())
    assert ("Not all labels could be read" in page.text) == damage
    spoken = [a.get("aria-label") or "" for t, a in page.tags if t == "svg"]
    for drawn in ("teacher-0: label entropy", "teacher-0: tail mass"):
        assert any(text.startswith(drawn) for text in spoken) != damage


def test_paths_of_this_machine_stay_here(write, evaluation_of, tmp_path):
    """Of paths in the settings, the page holds the last part only."""
    page = write(evaluation_of())
    assert "birds.safetensors" in page.text
    assert str(tmp_path) not in page.source


def test_page_replaces_the_old_one_whole(project, evaluation_of, tmp_path, monkeypatch):
    """When writing fails, the old page is left as it was, and the error says where."""
    folder = tmp_path / "report"
    path = write_report(project, evaluation_of(), folder, written=WRITTEN)
    before = path.read_bytes()

    def refuse(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(StoreError, match=r"index\.html cannot be written: disk full"):
        write_report(project, evaluation_of(["other"]), folder)
    assert path.read_bytes() == before
    assert [item.name for item in folder.iterdir()] == ["index.html"]
