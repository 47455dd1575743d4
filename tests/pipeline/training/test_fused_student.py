"""A student whose classifier is fused with its loss, trained from stored labels."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from pipeline.config import StudentConfig, load_project
from pipeline.data import load_label_space, load_manifest
from pipeline.numerics.fused_classifier import _BLOCK_LOGITS
from pipeline.store.published import open_published
from pipeline.training.launch import train_on_ranks
from pipeline.training.metrics_log import read_metrics
from pipeline.training.runs import StudentRun, student_run, training_rows
from pipeline.training.students import train_student
from storage_schemas.manifest import TRAIN


@pytest.fixture
def config(labelled_project, monkeypatch):
    """The project file; its network can be imported here and, through that, on the ranks."""
    monkeypatch.syspath_prepend(str(labelled_project.parent))
    monkeypatch.delenv("RANK_DIES", raising=False)
    return labelled_project


def trained(config, name: str, *settings: str) -> StudentRun:
    """Train a student with a linear head."""
    given = [f"student.{setting}" for setting in (f"name={name}", "head={name: linear}", *settings)]
    project = load_project(config, given)
    manifest, space = load_manifest(project.workspace), load_label_space(project.workspace)
    published = open_published(project, space, manifest, TRAIN)
    run = student_run(project, "student", space, manifest, published)
    if project.student.devices == 1:
        train_student(project, run, space, manifest, published)
    else:
        images = len(training_rows(manifest, published))
        train_on_ranks(project, run, images, str(config), given)
    return run


def assert_near(one: StudentRun, other: StudentRun) -> None:
    """Every logged term and the final weights agree up to roundings."""
    names = ("loss", "vertical_loss", "kd_loss", "task_loss", "vertical_probability")
    logs = [list(read_metrics(run.folder / "metrics.csv")) for run in (one, other)]
    assert len(logs[0]) == len(logs[1]) > 0
    for rows in zip(*logs, strict=True):
        for name in names:
            assert float(rows[0][name]) == pytest.approx(float(rows[1][name]), rel=1e-5, abs=1e-6)
    torch.testing.assert_close(load_file(one.weights), load_file(other.weights))


def test_it_trains_as_with_all_logits(config, monkeypatch):
    """Logits of two rows at a time: the same terms at each step, and the same student."""
    whole = trained(config, "whole")
    monkeypatch.setitem(_BLOCK_LOGITS, "cpu", 10)  # two rows of five classes
    fused = trained(config, "fused", "fused_classifier=true")
    assert whole.fingerprint != fused.fingerprint
    assert_near(whole, fused)


@pytest.mark.slow
def test_it_trains_on_ranks(config):
    """Two ranks, which share a batch of seven unevenly, give what one process gives."""
    alone = trained(config, "fused-alone", "fused_classifier=true")
    together = trained(config, "fused-together", "fused_classifier=true", "devices=2")
    assert_near(alone, together)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head": {"name": "structurally_connected"}}, "head linear, got 'structurally_connected'"),
        ({"objective": {"name": "meal"}}, r"means over rows .* got \['meal'\]"),
        ({"auxiliary": [{"name": "online_subclass"}]}, r"\['soft_labels', 'online_subclass'\]"),
    ],
)
def test_what_needs_all_logits_is_refused(settings, message):
    """Other heads, and losses that compare rows or networks, end with a message."""
    with pytest.raises(ValueError, match=message):
        StudentConfig.model_validate({"fused_classifier": True, **settings})


def test_a_run_that_does_not_use_it_keeps_its_fingerprint():
    """The setting is part of a run's settings only where it is on."""
    assert "fused_classifier" not in StudentConfig().model_dump()
    assert StudentConfig(fused_classifier=True).model_dump()["fused_classifier"] is True
