"""The table of what the labels lost: shown from the record, and only where the record fits."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from pipeline.report import write_report
from pipeline.store import create_soft_labels
from pipeline.store.published import publish
from pipeline.workspace import Workspace, write_record
from storage_schemas.exactness import Exactness
from storage_schemas.soft_labels import SoftLabelSchema, encode

SPREAD = {"mean": 0.0123, "max": 0.456}
LOST = {
    "temperature": 2.0,
    "outside": {"mean": 0.034, "max": 0.5},
    "truncation": SPREAD,
    "quantisation": {"compact": {"mean": 0.00021, "max": 0.001}, "exact": SPREAD},
    "uniform": SPREAD,
    "bucket": {"mean": 1e-17, "max": 1e-16},
    "drop": None,
}


@pytest.fixture
def text_of(project, evaluation_of, tmp_path) -> Any:
    """The words of the page, given a record beside the published store of teacher-0."""
    workspace = Workspace(project.workspace)
    schema = SoftLabelSchema(
        teacher="teacher-0",
        num_rows=8,
        num_views=1,
        k=2,
        num_classes=4,
        shard_rows=8,
        chunk_rows=8,
        classes=tuple(f"birds/{at}" for at in range(4)),
        global_ids=tuple(range(4)),
        fingerprint_parts={"weights": "abc"},
    )
    store = create_soft_labels(workspace.labels("teacher-0", schema.fingerprint), schema)
    ids = np.tile([0, 1], (8, 1))
    store.write_shard(0, 0, *encode(schema, ids, np.zeros((8, 2)), np.zeros((8, 1))))
    publish(workspace, "teacher-0", {"train": schema.fingerprint}, {})

    def text(**fields: Any) -> str:
        record = {"version": 1, "fingerprint": schema.fingerprint, "split": "test", "rows": 512}
        record |= {"activation": "softmax", "selection": "top_k", "precision": "compact"}
        record |= {"ranks": 16.0, "losses": [LOST], **fields}
        write_record(workspace.exactness("teacher-0"), record)
        written = datetime(2026, 1, 2, tzinfo=UTC)
        page = write_report(project, evaluation_of(), tmp_path / "report", written=written)
        source = re.sub(r"<style>.*?</style>", "", page.read_text("utf-8"), flags=re.DOTALL)
        return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", source))

    return text


def test_losses_are_shown_by_teacher_and_temperature(text_of) -> None:
    """Mean and largest value of each kind, n/a where there is none, 0 for rounding noise."""
    text = text_of()
    row = text[text.index("512 test") :][:200]
    assert "2 16.0 3.40" in row
    for cell in ("0.012 (0.46)", "0.00021 (0.001)", "0 (0)", "n/a"):
        assert cell in row
    assert "Not measured" not in text


@pytest.mark.parametrize(
    "fields",
    [
        {"fingerprint": "0123456789abcdef"},
        {"version": 2},
        {"losses": [{**LOST, "truncation": {"mean": "<script>", "max": 1}}]},
        {"ranks": float("nan")},
        {"rows": 0},
    ],
)
def test_a_record_of_others_or_a_broken_one_is_not_shown(text_of, fields) -> None:
    """A record of another store, a newer one or a damaged one stops nothing and claims nothing."""
    text = text_of(**fields)
    assert "What the labels lost" not in text
    assert "Stores of soft labels" in text


def test_the_record_round_trips_through_json() -> None:
    """What is written is what is read."""
    record = Exactness.model_validate(
        {
            "fingerprint": "a",
            "split": "train",
            "rows": 3,
            "activation": "softmax",
            "selection": "sampled",
            "precision": "exact",
            "ranks": 2.5,
            "losses": [{**LOST, "quantisation": {}}],
        }
    )
    assert Exactness.model_validate_json(record.model_dump_json()) == record
