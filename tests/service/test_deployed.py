"""The pipeline on a schedule: a real server, a pool, a worker, in the order of a first week."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from pipeline.store.lock import lock_path

pytestmark = pytest.mark.service


@pytest.fixture(scope="module")
def name(deployed: Path) -> str:
    """The project's name, which is that of all its deployments."""
    return deployed.name


def committed(folder: Path, teacher: str) -> int:
    """Return the labels that a teacher's stores hold."""
    from pipeline.store import open_soft_labels

    stores = (folder / "work" / "labels" / teacher).glob("*.zarr")
    return sum(int(open_soft_labels(path).commits[:, :, 0].sum()) for path in stores)


def test_all_stages_are_deployed(server: Any, deployed: Path, name: str):
    """Every stage has a deployment in the pool that `deploy` made, one run of it at a time."""
    found = server.ask("deployments/filter", {})
    mine = {item["entrypoint"].rpartition(".")[2]: item for item in found if item["name"] == name}
    assert sorted(mine) == sorted(
        [
            "concentrate", "train_specialists", "label_teachers", "verify_stores",
            "train_student", "evaluate_student", "report_student",
        ]
    )  # fmt: skip
    for item in mine.values():
        assert item["work_pool_name"] == "tests"
        assert item["global_concurrency_limit"]["limit"] == 1
        assert item["concurrency_options"]["collision_strategy"] == "ENQUEUE"
        assert Path(item["parameters"]["config"]).is_absolute()
    assert [s["schedule"]["cron"] for s in mine["label_teachers"]["schedules"]] == ["0 2 * * *"]


def test_a_bad_parameter_is_refused_before_anything_runs(server: Any, deployed: Path, name: str):
    """The server refuses a depth that does not exist and a setting without a value."""
    for flow, wrong in (
        (f"verify-stores/{name}", {"depth": "deep"}),
        (f"label-teachers/{name}", {"overrides": ["labels.k"]}),
        (f"label-teachers/{name}", {"teacher": "../shades"}),
    ):
        with pytest.raises(OSError, match=r"409|422"):
            server.start(flow, **wrong)


def test_the_student_starts_when_the_last_teacher_has_published(
    server: Any, deployed: Path, name: str, wait: Any
):
    """No student after the first teacher; one after the last, then its evaluation and report."""
    train = f"train-student/{name}"
    assert server.ended(server.start(f"label-teachers/{name}", teacher="shades")) == "COMPLETED"
    assert committed(deployed, "shades") > 0
    assert committed(deployed, "tints") == 0
    second = server.start(f"label-teachers/{name}", teacher="tints")
    assert server.runs(train) == []  # the worker needs seconds to begin the second teacher
    assert server.ended(second) == "COMPLETED"
    (run,) = wait(lambda: server.runs(train), "a run of the student")
    assert server.ended(run["id"]) == "COMPLETED"
    for flow in ("evaluate-student", "write-report"):
        (run,) = wait(lambda flow=flow: server.runs(f"{flow}/{name}"), flow)
        assert server.ended(run["id"]) == "COMPLETED"
    assert (deployed / "work" / "report" / "index.html").is_file()
    assert len(server.runs(train)) == 1


def test_runs_can_be_read_on_the_server(server: Any, deployed: Path, name: str):
    """Runs and tasks are named by teacher, views, shards; artifacts hold rates and the report."""
    names = {run["name"] for run in server.ask("flow_runs/filter", {})}
    assert {f"label/{name}/shades", "label/shades", f"train/{name}", f"report/{name}"} <= names
    tasks = {task["name"] for task in server.ask("task_runs/filter", {})}
    assert {"label/shades/train/v0-v1/s0", "label/tints/test/v0/s0", "train/student"} <= tasks
    table = json.loads(server.artifacts("labels-shades")[0]["data"])
    assert table[0]["labels"] == 40
    assert server.artifacts("labelling-shades-train")[0]["data"] == 100.0
    assert "top-1" in server.artifacts("report")[0]["data"]
    assert "index.html" in server.artifacts("report-page")[0]["data"]


def test_a_schedule_fires(server: Any, deployed: Path, name: str, wait: Any):
    """The check that is scheduled every minute runs by itself and completes."""
    runs = wait(
        lambda: [run for run in server.runs(f"verify-stores/{name}") if run["start_time"]],
        "a scheduled check",
    )
    assert runs[0]["auto_scheduled"]
    assert runs[0]["name"] == f"verify/{name}"
    assert runs[0]["parameters"]["depth"] == "full"
    server.ended(runs[0]["id"])


def test_a_failed_run_says_how_to_go_on_and_its_rerun_does_the_rest(
    server: Any, deployed: Path, name: str, wait: Any
):
    """Weights that give NaN: the note names teacher, shard and row; mended, the rest is done.

    The teacher that was up to date announced itself too, so the student is started once more.
    """
    from pipeline.config import load_project
    from pipeline.plan import make_plan

    config = deployed / f"{name}.yaml"
    weights = deployed / "tints.safetensors"
    sound = weights.read_bytes()
    state = load_file(weights)
    for value in state.values():
        if value.is_floating_point():
            value.fill_(float("nan"))
    save_file(state, weights)
    # The published stores of the sound weights are set aside, to be made again.
    for store in (deployed / "work" / "labels" / "tints").glob("*.zarr"):
        store.rename(deployed / store.name)
    run = server.start(f"label-teachers/{name}")
    assert server.ended(run) == "FAILED"
    (note,) = [a for a in server.artifacts("failed-label") if a["flow_run_id"] == run]
    for part in ("'tints'", "row ", "shard ", f"concentrate label {config}"):
        assert part in note["data"]
    weights.write_bytes(sound)
    before = make_plan(load_project(config))[0].work
    assert {item.target for item in before if item.stage == "label"} == {
        "tints/train",
        "tints/test",
    }
    assert server.ended(server.start(f"label-teachers/{name}")) == "COMPLETED"
    assert committed(deployed, "tints") == committed(deployed, "shades")
    runs = wait(lambda: server.runs(f"train-student/{name}")[1:], "another run of the student")
    assert [server.ended(run["id"]) for run in runs] == ["COMPLETED"]


def test_a_cancelled_run_lets_go_and_its_rerun_goes_on(
    server: Any, deployed: Path, name: str, wait: Any
):
    """Cancelled while it trains: marked so, the lock is free, and the rerun resumes."""
    settings = {
        "overrides": ["student.name=long", "student.epochs=300", "student.checkpoint_every_steps=5"]
    }
    run = server.start(f"train-student/{name}", **settings)
    folder = deployed / "work" / "students" / "long"

    def begun() -> bool:
        state = server.ask(f"flow_runs/{run}")["state"]
        assert state["type"] not in ("COMPLETED", "FAILED", "CRASHED"), state["message"]
        return any(folder.glob("*/checkpoints/step-*.pt"))

    wait(begun, "a checkpoint")
    server.ask(
        f"flow_runs/{run}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}}
    )
    assert server.ended(run) == "CANCELLED"
    (trained,) = [path for path in folder.iterdir() if path.is_dir()]
    assert not (trained / "student.json").exists()  # it was cancelled in the middle
    with lock_path(trained).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert server.ended(server.start(f"train-student/{name}", **settings)) == "COMPLETED"
    assert json.loads((trained / "student.json").read_text())["resumed_from"] > 0
