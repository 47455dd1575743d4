"""`student.devices` through the command line: ranks of torchrun, inside a flow."""

from __future__ import annotations

import json
import shutil

import pytest


@pytest.mark.flow
@pytest.mark.slow
def test_train_verb_trains_on_two_ranks(steps, tmp_path, run_line):
    """`train` with two devices ends with weights, logs of both ranks, and a run not to repeat.

    The number of devices identifies no run: afterwards one device has nothing left to do.
    """
    steps.result("label_all")
    folder = tmp_path / "project"
    shutil.copytree(steps.folder, folder)
    line = "concentrate train project.yaml --json --set student.control=false"
    line += " --set student.name=wide --set student.devices="
    done = run_line(folder, f"{line}2")
    assert done.exit_code == 0, done.output
    (run,) = json.loads(done.stdout)
    (record,) = folder.glob("work/students/wide/*/student.json")
    assert run["folder"] == str(record.parent)
    assert json.loads(record.read_text())["student"]["devices"] == 2
    assert record.with_name("weights.safetensors").exists()
    assert len(list(record.parent.glob("ranks/*/logs/*/attempt_0/*/stderr.log"))) == 2
    assert "wide: done in" in done.stderr
    assert "images/s" in done.stderr
    again = run_line(folder, f"{line}1")
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout) == []


@pytest.mark.flow
def test_more_devices_than_images_of_a_batch_are_refused(project_folder, run_line):
    """A number of devices that cannot be served is wrong input, said before anything starts."""
    done = run_line(project_folder, "concentrate train project.yaml --set student.devices=17")
    assert done.exit_code == 2
    assert "student" in done.stderr
    assert "batch_size / views_per_image = 16), got 17" in done.stderr
