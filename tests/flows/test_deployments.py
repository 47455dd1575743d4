"""What is deployed, and that `prefect.yaml` and the flows say the same."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import yaml

from pipeline.config import load_project
from storage_schemas.errors import ConfigError

ROOT = Path(__file__).parents[2]
DEMO = "flows/configs/glyphs.yaml"

pytestmark = pytest.mark.filterwarnings("default")  # Prefect warns at import


@pytest.fixture
def demo():
    """The demo's deployments."""
    from flows.deployments import stage_deployments

    return stage_deployments(load_project(ROOT / DEMO), DEMO, [])


def test_prefect_yaml_is_what_deploy_deploys(demo):
    """The file at the root holds the deployments of the demo, and nothing else."""
    from flows.deployments import prefect_yaml

    written = yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))
    assert written == prefect_yaml(demo)


def test_every_deployment_is_a_flow_that_takes_its_parameters(demo):
    """Entry points exist, have the name that triggers and people use, and accept the values."""
    for item in demo:
        module, _, function = item.entrypoint.rpartition(".")
        flow = getattr(importlib.import_module(module), function)
        assert flow.name == item.flow
        assert set(item.parameters) <= set(flow.parameters.properties)
        flow.validate_parameters(item.parameters)


def test_the_student_waits_for_all_teachers_of_the_project(demo):
    """One event of each teacher is required; a project with another teacher waits for it too."""
    from flows.deployments import stage_deployments

    def awaited(deployments):
        (trigger,) = next(d for d in deployments if d.stage == "train").triggers
        assert trigger["require"] == "all"
        return [part["match"]["prefect.resource.id"] for part in trigger["triggers"]]

    project = load_project(ROOT / DEMO)
    names = [teacher.name for teacher in project.teachers]
    assert awaited(demo) == [f"concentrate.labels.glyphs.{name}" for name in names]
    fewer = project.model_copy(update={"teachers": project.teachers[:2]})
    assert len(awaited(stage_deployments(fewer, DEMO, []))) == 2


def test_a_project_with_all_weights_trains_no_specialists_at_night(demo):
    """Specialists are on the schedule only where there are some to train."""
    from flows.deployments import stage_deployments

    project = load_project(ROOT / DEMO)
    given = tuple(t.model_copy(update={"weights": Path("w.pt")}) for t in project.teachers)
    complete = project.model_copy(update={"teachers": given})
    for deployments, nightly in ((demo, 1), (stage_deployments(complete, DEMO, []), 0)):
        found = {item.stage: item for item in deployments}
        assert len(found["specialists"].schedules) == nightly
        assert len(found["label"].schedules) == 1


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("flows/configs/glyphs.yaml", "glyphs"),
        ("/data/pets/project.yaml", "pets"),
        ("/data/my pets/project.yaml", "my-pets"),
        ("a & b.yaml", "a-b"),
    ],
)
def test_names_of_projects(path: str, name: str):
    """A project is called as its file, or as its folder where the file is project.yaml."""
    from flows.events import project_name

    assert project_name(path) == name


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"config": ""}, "config"),
        ({"overrides": ["student.epochs"]}, "overrides"),
        ({"teacher": "../greek"}, "teacher"),
        ({"depth": "deep"}, "depth"),
    ],
)
def test_bad_parameters_are_refused_before_the_body_runs(wrong, field: str):
    """Prefect's form has bounds and choices, and a value outside them starts nothing."""
    from prefect.exceptions import ParameterTypeError

    from flows.verify_stores import verify_stores

    with pytest.raises(ParameterTypeError, match=field):
        verify_stores.validate_parameters({"config": DEMO} | wrong)
    form = verify_stores.parameters.properties
    assert form["depth"]["enum"] == ["quick", "full", "audit"]
    assert all(form[name].get("description") for name in form)


def test_the_command_to_go_on():
    """It names the verb, the teacher and the settings of the run that failed."""
    from flows.outcomes import resume_command

    given = {"config": "/p/glyphs.yaml", "teacher": "greek", "overrides": ["labels.k=8"]}
    assert (
        resume_command("label-teachers", given)
        == "concentrate label /p/glyphs.yaml --teacher greek --set 'labels.k=8'"
    )
    assert resume_command("concentrate", {"config": "a.yaml"}) == "concentrate run a.yaml"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, "specialists label verify train evaluate report"),
        ({"only": "label", "teacher": "greek"}, "label"),
        ({"from_stage": "train", "again": True}, "train evaluate report"),
        ({"only": "report", "again": True}, "report"),
    ],
)
def test_stages_of_a_run(arguments, expected: str):
    """--only is one stage, --from is it and all after it."""
    from flows.selection import select_stages

    assert " ".join(select_stages(**arguments)) == expected


@pytest.mark.parametrize(
    ("arguments", "problems"),
    [
        ({"only": "label", "from_stage": "train"}, ["--only label and --from train"]),
        ({"only": "train", "teacher": "greek"}, ["--teacher greek has no effect on train"]),
        ({"again": True}, ["got specialists, label, verify"]),
        ({"only": "label", "again": True, "from_stage": "report"}, ["exclude", "got label"]),
    ],
)
def test_wishes_that_contradict_each_other(arguments, problems: list[str]):
    """All of them are told at once, with what to do instead."""
    from flows.selection import select_stages

    with pytest.raises(ConfigError) as caught:
        select_stages(**arguments)
    for part in problems:
        assert part in str(caught.value)


def test_deploy_without_a_server_says_how_to_start_one(project_folder, run_line, monkeypatch):
    """No PREFECT_API_URL is exit code 2 and the command that starts a server."""
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    for verb in ("deploy", "serve"):
        done = run_line(project_folder, f"concentrate {verb} project.yaml")
        assert done.exit_code == 2
        assert "prefect server start --host 127.0.0.1" in done.stderr


@pytest.mark.flow
def test_a_gpu_is_held_by_one_task_at_a_time(prefect_server):
    """A deployed run refuses a limit that is not there; one that is there has one slot."""
    from prefect.client.orchestration import get_client

    from flows.gpu import hold

    with pytest.raises(ConfigError, match="concentrate deploy"), hold("gpu-none", strict=True):
        pass
    with get_client(sync_client=True) as client:
        client.upsert_global_concurrency_limit_by_name("gpu-test", 1)

        def taken() -> int:
            return client.read_global_concurrency_limit_by_name("gpu-test").active_slots

        with hold("gpu-test", strict=True):
            assert taken() == 1
        assert taken() == 0


@pytest.mark.flow
def test_a_run_on_several_gpus_holds_the_slot_of_each(prefect_server):
    """`student.devices: 2` takes both; where one has no limit it is told, and none is kept."""
    from prefect.client.orchestration import get_client

    from flows.gpu import hold

    names = ("gpu-pair-0", "gpu-pair-1")
    with get_client(sync_client=True) as client:
        for name in names:
            client.upsert_global_concurrency_limit_by_name(name, 1)

        def taken() -> list[int]:
            found = [client.read_global_concurrency_limit_by_name(name) for name in names]
            return [limit.active_slots for limit in found]

        with hold(*names, strict=True):
            assert taken() == [1, 1]
        missing = hold(*names, "gpu-pair-2", strict=True)
        with pytest.raises(ConfigError, match="no limit 'gpu-pair-2'"), missing:
            pass
        assert taken() == [0, 0]
