"""One's own images and teachers through the whole pipeline, and what a change does again."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import Result

Run = Callable[[Path, str], Result]

pytestmark = [pytest.mark.flow, pytest.mark.filterwarnings("default")]

IMAGES = 6 * 12 + 6  # with six odd files, of which one does not decode


@pytest.fixture
def finished(steps: Any, tmp_path: Path) -> Path:
    """A copy of the project after a whole run, to change and to damage."""
    steps.result("run_again")
    folder = tmp_path / "copy"
    shutil.copytree(steps.folder, folder)
    return folder


def stores(folder: Path, teacher: str) -> list[Path]:
    """Return all stores of a teacher."""
    return sorted(folder.glob(f"work/labels/{teacher}/*.zarr"))


def test_odd_images_are_used_and_a_broken_one_is_put_aside(steps: Any, run_line: Run):
    """Gray, transparent, palette, 16-bit and turned files count; the broken one is listed."""
    steps.result("plan")
    found = json.loads(run_line(steps.folder, "concentrate plan project.yaml --json").stdout)
    assert found["quarantined"] == 1
    assert sum(found["images"].values()) == IMAGES - 1
    assert min(found["images"].values()) > 0
    with (steps.folder / "work" / "data" / "quarantine.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert len(rows) == 2
    assert rows[1][0].endswith("shapes/square/broken.png")


def test_labels_mean_the_classes_of_the_teachers_own_list(steps: Any):
    """The checkpoint says T > O > L in its own order; so do its labels in the label space."""
    from pipeline.data import load_label_space, load_manifest
    from pipeline.store import open_soft_labels

    steps.result("label")
    space = load_label_space(steps.folder / "work")
    manifest = load_manifest(steps.folder / "work")
    own = set(space.classes_in("letters").tolist())
    rows_seen = 0
    for path in stores(steps.folder, "letters"):
        store = open_soft_labels(path, space=space)
        split = ("train", "test").index(str(store.schema.split))
        rows = manifest.rows(split, support=np.array(sorted(own)))
        for view in range(store.schema.num_views):
            batch = store.read(rows, view)
            names = [[space.classes[i] for i in row] for row in batch.ids[0].tolist()]
            assert names == [["letters/T", "letters/O"]] * len(rows)
            expected = torch.log_softmax(torch.tensor([3.0, 1.0, -1.0]), 0)
            torch.testing.assert_close(
                batch.log_probs[0], expected[:2].expand(len(rows), 2), atol=0.1, rtol=0
            )
        rows_seen += len(rows)
    assert rows_seen == 3 * 12


def test_what_the_labels_lost_is_measured_and_reported(steps: Any):
    """Labelling leaves a record for each teacher, of two of three known logits, and it is shown."""
    steps.result("run_again")
    for name in ("letters", "shapes"):
        record = json.loads((steps.folder / f"work/labels/{name}/exactness.json").read_text())
        train = steps.folder / f"work/labels/{name}/{record['fingerprint']}.zarr"
        assert train in stores(steps.folder, name)
        assert [lost["temperature"] for lost in record["losses"]] == [1.0, 2.0]
        if name == "letters":  # one class is left out: nothing is lost by an even tail
            p = torch.softmax(torch.tensor([3.0, 1.0, -1.0], dtype=torch.float64), 0)
            assert record["losses"][0]["outside"]["mean"] == pytest.approx(float(p[2]), rel=1e-3)
            assert abs(record["losses"][0]["truncation"]["max"]) < 1e-9
            assert record["losses"][0]["drop"]["mean"] == pytest.approx(
                -np.log(1 - float(p[2])), rel=0.5
            )
    assert "What the labels lost" in (steps.folder / "work/report/index.html").read_text()


def test_only_the_teacher_without_weights_is_trained(steps: Any):
    """`specialists` trains the vertical whose weights are null; the checkpoint is left alone."""
    steps.result("specialists")
    trained = sorted(
        path.parent.parent.name for path in steps.folder.glob("work/teachers/*/*/record.json")
    )
    assert trained == ["shapes"]


def test_a_second_run_finds_everything_up_to_date(steps: Any):
    """Nothing is done again, it says so, and the results are all there."""
    result = steps.json("run_again")
    assert not any(result["done"].values())
    assert "everything is up to date" in steps.result("run_again").stderr
    assert result["quarantined"] == 1
    assert {run["role"] for run in result["evaluation"]["runs"]} == {"student", "control"}
    assert set(result["evaluation"]["specialists"]) == {"letters", "shapes"}
    assert (
        Path(result["report"]).read_text(encoding="utf-8").lstrip().lower().startswith("<!doctype")
    )
    plan = json.loads(steps.result("plan_again").stdout)
    assert plan["work"] == []


def test_other_epochs_train_the_student_only(steps: Any):
    """After --set student.epochs no specialist is trained and nothing is labelled again."""
    before = {path for teacher in ("letters", "shapes") for path in stores(steps.folder, teacher)}
    shown = steps.result("run").stderr
    after = {path for teacher in ("letters", "shapes") for path in stores(steps.folder, teacher)}
    assert before == after
    assert "student: done" in shown
    assert "labels " not in shown
    assert "specialist " not in shown
    assert len(list(steps.folder.glob("work/students/student/*/student.json"))) == 2
    assert len(list(steps.folder.glob("work/teachers/*/*/record.json"))) == 1


def test_a_changed_checkpoint_is_labelled_again_alone(finished: Path, run_line: Run):
    """Other weights of one teacher: its labels and the student are done again, nothing else."""
    state = load_file(finished / "letters.safetensors")
    state["fc.bias"] = torch.tensor([-1.0, 1.0, 3.0])
    save_file(state, finished / "letters.safetensors")
    plan = json.loads(run_line(finished, "concentrate plan project.yaml --json").stdout)
    labels = [item for item in plan["work"] if item["stage"] == "label"]
    assert [item["target"] for item in labels] == ["letters/train", "letters/test"]
    assert all("weights" in item["reason"] for item in labels)
    kept = {path: path.stat().st_mtime_ns for path in stores(finished, "shapes")}
    result = json.loads(run_line(finished, "concentrate run project.yaml --json").stdout)
    assert result["done"]["specialists"] == 0
    assert result["done"]["labels"] == sum(item["labels"] for item in labels)
    assert result["done"]["runs"] == 1  # the control has no labels to depend on
    assert len(stores(finished, "letters")) == 4
    assert kept == {path: path.stat().st_mtime_ns for path in stores(finished, "shapes")}


def test_a_damaged_store_fails_verification(finished: Path, run_line: Run):
    """One flipped byte: exit code 1, the shard is named, and labelling repairs just that one."""
    record = json.loads((finished / "work/labels/shapes/published.json").read_text())
    store = finished / "work" / "labels" / "shapes" / f"{record['stores']['train']}.zarr"
    shard = sorted(path for path in (store / "gaps" / "c").rglob("*") if path.is_file())[-1]
    view, number = shard.relative_to(store / "gaps" / "c").parts[:2]
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 0x10
    shard.write_bytes(content)
    result = run_line(finished, "concentrate verify project.yaml --depth full")
    assert result.exit_code == 1
    assert result.stdout == ""
    for part in ("shapes/train", str(store.name), "gaps", f"view {view}", f"shard {number}"):
        assert part in result.stderr
    assert "letters/" not in result.stderr
    inspected = run_line(finished, f"concentrate inspect {store} --json")
    assert inspected.exit_code == 1
    assert json.loads(inspected.stdout)["problems"]
    repaired = json.loads(run_line(finished, "concentrate label project.yaml --json").stdout)
    assert [(r["teacher"], r["split"], r["shards"]) for r in repaired] == [("shapes", "train", 1)]
    assert run_line(finished, "concentrate verify project.yaml --depth full").exit_code == 0
    again = json.loads(run_line(finished, "concentrate run project.yaml --json").stdout)
    assert again["done"] == {"specialists": 0, "labels": 0, "runs": 0}


def test_checkpoints_that_do_not_fit_are_refused(finished: Path, run_line: Run):
    """Another number of classes, and a pickled network: exit code 2, and why."""
    state = load_file(finished / "letters.safetensors")
    wrong = state | {"fc.bias": torch.zeros(4), "fc.weight": torch.zeros(4, 1024)}
    save_file(wrong, finished / "four.safetensors")
    torch.save(torch.nn.Linear(3, 3), finished / "pickled.pt")
    line = "concentrate label project.yaml --teacher letters --set teachers.letters.weights="
    result = run_line(finished, f"{line}four.safetensors")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "fc.bias: expected (3,), got (4,)" in result.stderr
    result = run_line(finished, f"{line}pickled.pt")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "pickled objects" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_torch_file_with_a_state_dict_labels_alike(finished: Path, run_line: Run):
    """The same weights as .pt give the same labels as the .safetensors file did."""
    from pipeline.store import open_soft_labels

    before = {path: open_soft_labels(path) for path in stores(finished, "letters")}
    state = load_file(finished / "letters.safetensors")
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, finished / "l.pt")
    line = "concentrate label project.yaml --teacher letters --set teachers.letters.weights=l.pt"
    assert run_line(finished, line).exit_code == 0
    new = [open_soft_labels(path) for path in stores(finished, "letters") if path not in before]
    for store in new:
        (old,) = [s for s in before.values() if s.schema.split == store.schema.split]
        for view, shard in np.argwhere(store.commits[:, :, 0]):
            for codes, expected in zip(
                store.read_shard(view, shard), old.read_shard(view, shard), strict=True
            ):
                np.testing.assert_array_equal(codes, expected)
    assert len(new) == 2


def test_predict_names_classes(steps: Any):
    """`predict` shows the image and classes of the label space, and takes several images."""
    shown = steps.result("predict").stdout
    assert "00.png" in shown
    assert "letters/" in shown
