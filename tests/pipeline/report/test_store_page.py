"""The page of one store: self-contained, escaped, with the figures and the images."""

from __future__ import annotations

import dataclasses
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.report import write_store_page
from pipeline.store import StoreSummary, create_soft_labels, inspect_store
from pipeline.store.store_summary import Confusion, Disagreement, VerticalSummary
from storage_schemas.soft_labels import SoftLabelSchema, encode

WRITTEN = datetime(2026, 1, 2, tzinfo=UTC)
HOSTILE = '<script>alert(1)</script>" onload="x'


@pytest.fixture
def summary(tmp_path: Path) -> StoreSummary:
    """A real summary, with what only a workspace has put in."""
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
    )
    store = create_soft_labels(tmp_path / "secret-folder" / "a.zarr", schema)
    rng = np.random.default_rng(0)
    ids = np.stack([rng.permutation(12)[:4] for _ in range(60)])
    logits = -np.sort(-rng.normal(0, 2, (60, 4)), axis=1)
    store.write_shard(0, 0, *encode(schema, ids, logits, rng.uniform(0, 4, (60, 1))))
    return dataclasses.replace(
        inspect_store(store.path),
        verticals=(
            VerticalSummary(vertical=HOSTILE, rows=80, labels=(60,), compared=60, agreed=45),
        ),
        compared=60,
        agreement=0.75,
        confused=(Confusion(hard=HOSTILE, first="birds/1", labels=7),),
        disagreements=(
            Disagreement(
                row=5,
                view=0,
                key="birds/0.png",
                hard="birds/1",
                first="birds/2",
                first_probability=0.983,
                hard_probability=0.00042,
            ),
        ),
    )


def test_page_shows_every_figure(summary: StoreSummary, tmp_path: Path):
    """Agreement, coverage, bytes, likely label errors are there; paths of the machine are not."""
    write_store_page(summary, tmp_path / "page.html", written=WRITTEN)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page))
    for expected in (
        "75.0",
        "98.3",
        "0.042",
        "birds/0.png",
        "image not shown",
        "row 5",
        "60 soft labels in 1 view,",
        "in 1 shard",
    ):
        assert expected in text
    assert f"{summary.ids_bytes:.2f}" in text
    assert f"{summary.entropy_mean:.2f}" in text
    assert "secret-folder" not in page
    spoken = re.findall(r'<svg[^>]*aria-label="([^"]*)"', page)
    assert [words.partition(",")[0] for words in spoken] == [
        "teacher-0: label entropy",
        "teacher-0: tail mass",
        "teacher-0: labels by first rank",
    ]


def test_page_runs_and_loads_nothing(summary: StoreSummary, tmp_path: Path, project: Any):
    """A hostile name stays text; images are inside; no script, no outside reference."""
    Image.new("L", (8, 8), 77).save(project.data.root / "birds" / "0.png")
    write_store_page(summary, tmp_path / "page.html", project=project, written=WRITTEN)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "default-src 'none'" in page
    assert set(re.findall(r'(?:src|href)="([^"]{5})', page)) <= {"data:"}
    assert 'src="data:image/png;base64,' in page
    ids = re.findall(r' id="([^"]*)"', page)
    assert len(ids) == len(set(ids))


def test_page_names_the_damage(summary: StoreSummary, tmp_path: Path):
    """Problems of the store are listed, and no hard labels is a sentence."""
    damaged = dataclasses.replace(
        summary,
        problems=("gaps, view 0, shard 0: file is empty",),
        verticals=(),
        disagreements=(),
        agreement=None,
        compared=0,
        hard_labels_problem="the store does not lie in a workspace",
    )
    write_store_page(damaged, tmp_path / "page.html", written=WRITTEN)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "gaps, view 0, shard 0: file is empty" in page
    assert "the store does not lie in a workspace" in page
    assert "Likely label errors" not in page
