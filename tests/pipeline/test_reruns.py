"""What reruns when: a finished project, one change, and what the plan then asks for."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from pipeline.config import load_project
from pipeline.data import update_manifest
from pipeline.models.backbones import glyph_resnet
from pipeline.plan import make_plan
from pipeline.report import write_report
from pipeline.store.published import SPLIT_NAMES, open_published, publish
from pipeline.teachers.labelling import label_shards, teacher_cost
from pipeline.teachers.spec import resolve_teachers
from pipeline.teachers.stores import missing_work, open_or_create, store_schema
from pipeline.training import runs as training_runs
from pipeline.training.evaluation import evaluate_runs
from pipeline.training.runs import (
    REPORT_VERSION,
    discard_run,
    evaluation_fingerprint,
    evaluation_path,
    student_runs,
)
from pipeline.training.students import train_student
from pipeline.workspace import Workspace, write_record
from storage_schemas.manifest import TEST, TRAIN

PROJECT = """
workspace: work
data: {source: image_folder, root: images, vertical_depth: 1, test_fraction: 0.3}
views: {count: 2, crop: {scale: [0.6, 1.0]}}
teachers:
  - &one
    name: shades
    builder: python:pipeline.models.backbones:glyph_resnet
    builder_args: {in_channels: 3, width: 8}
    weights: shades.safetensors
    classes: {vertical: shades}
    input: {size: 16}
  - {<<: *one, name: tints, weights: tints.safetensors, classes: {vertical: tints}}
labels: {k: 2, temperatures: [1.0, 2.0], shard_rows: 16, chunk_rows: 16}
student:
  builder: pipeline.models.backbones:glyph_resnet
  builder_args: {in_channels: 3, width: 8}
  input: {size: 16}
  objective: {name: soft_labels, temperature: 2.0}
  epochs: 1
  batch_size: 16
runtime: {device: cpu}
"""
LABELS = {f"label {name}/{split}" for name in ("shades", "tints") for split in SPLIT_NAMES}
# The test rows are labelled in one fixed view, which no setting of the recipe moves.
TRAINING_LABELS = {"label shades/train", "label tints/train"}
AFTER = {"evaluate test rows", "report report"}


def write_image(path: Path, number: int) -> None:
    """A plain picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16), (len(path.parent.name) * 30, 20 * number, 90)).save(path)


def label(config: Path, settings: list[str]) -> int:
    """Label what is missing and publish; return the labels written."""
    project = load_project(config, settings)
    update = update_manifest(project)
    space, manifest = update.label_space, update.manifest
    written = 0
    for spec in resolve_teachers(project, space, manifest):
        fingerprints = {}
        for split in (TRAIN, TEST):
            schema = store_schema(project, spec, space, manifest, split)
            store = open_or_create(project, schema, space)
            work = missing_work(project, schema, spec, manifest)
            written += label_shards(project, spec, manifest, store, work).labels
            fingerprints[SPLIT_NAMES[split]] = schema.fingerprint
        publish(Workspace(project.workspace), spec.name, fingerprints, teacher_cost(spec))
    return written


def finish(config: Path) -> None:
    """Train, evaluate and report, as the flows do."""
    project = load_project(config)
    update = update_manifest(project)
    space, manifest = update.label_space, update.manifest
    published = open_published(project, space, manifest, TRAIN)
    runs = student_runs(project, space, manifest, published)
    for run in runs:
        train_student(project, run, space, manifest, published)
    tests = open_published(project, space, manifest, TEST)
    digest = evaluation_fingerprint(runs, manifest, tests, project.report.samples)
    evaluation = {
        "fingerprint": digest,
        **evaluate_runs(project, runs, space, manifest, tests),
    }
    write_record(evaluation_path(runs[0]), evaluation)
    folder = Workspace(project.workspace).report
    write_report(project, evaluation, folder)
    write_record(folder / "report.json", {"evaluation": digest, "version": REPORT_VERSION})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a project on which everything has run."""
    folder = tmp_path_factory.mktemp("finished")
    for vertical, names in (("shades", ("dark", "light")), ("tints", ("red", "blue"))):
        for name in names:
            for number in range(8):
                write_image(folder / "images" / vertical / name / f"{number}.png", number)
        with torch.random.fork_rng():
            torch.manual_seed(len(vertical))
            network = glyph_resnet(2, in_channels=3, width=8)
        save_file(network.state_dict(), folder / f"{vertical}.safetensors")
    config = folder / "project.yaml"
    config.write_text(PROJECT, encoding="utf-8")
    label(config, [])
    finish(config)
    return folder


@pytest.fixture
def config(finished: Path, tmp_path: Path) -> Path:
    """The project file of a copy that a test may change."""
    shutil.copytree(finished, tmp_path / "copy")
    return tmp_path / "copy" / "project.yaml"


def planned(config: Path, settings: list[str]) -> set[str]:
    """Return what the plan asks for, as `stage target`."""
    plan, _ = make_plan(load_project(config, settings))
    return {f"{item.stage} {item.target}" for item in plan.work}


def nothing(config: Path) -> None:
    """Change nothing."""


def add_images(config: Path) -> None:
    """Add images of one vertical."""
    for number in range(20, 28):
        write_image(config.parent / "images" / "tints" / "blue" / f"{number}.png", number)


def new_weights(config: Path) -> None:
    """Give one teacher other weights."""
    path = config.parent / "tints.safetensors"
    state = load_file(path)
    save_file({k: v * 0.5 if v.is_floating_point() else v for k, v in state.items()}, path)


def delete_store(config: Path) -> None:
    """Remove one store, of which Prefect knows nothing."""
    (store,) = [
        path
        for path in (config.parent / "work" / "labels" / "tints").glob("*.zarr")
        if '"train"' in (path / "zarr.json").read_text()
    ]
    shutil.rmtree(store)


STUDENT, CONTROL = {"train student"}, {"train student-control"}


@pytest.mark.parametrize(
    ("change", "settings", "labels", "rest"),
    [
        (nothing, [], set(), set()),
        (add_images, [], {"label tints/train", "label tints/test"}, STUDENT | CONTROL | AFTER),
        (new_weights, [], {"label tints/train", "label tints/test"}, STUDENT | AFTER),
        (nothing, ["views.seed=1"], TRAINING_LABELS, STUDENT | CONTROL | AFTER),
        (nothing, ["labels.k=1"], LABELS, STUDENT | AFTER),
        (nothing, ["labels.temperatures=[1.0, 2.0, 4.0]"], LABELS, STUDENT | AFTER),
        (nothing, ["student.objective.temperature=1.0"], set(), STUDENT | AFTER),
        (nothing, ["student.objective.tail=drop"], set(), STUDENT | AFTER),
        (nothing, ["student.builder_args.width=12"], set(), STUDENT | CONTROL | AFTER),
        (nothing, ["student.control=false"], set(), AFTER),
        (nothing, ["report.samples=3"], set(), AFTER),
        (nothing, ["runtime.num_workers=1", "student.log_every_steps=3"], set(), set()),
        (delete_store, [], {"label tints/train"}, set()),
    ],
    ids=[
        "nothing", "images", "one teacher's weights", "recipe", "k", "temperatures",
        "temperature of the objective", "objective", "student's architecture", "no control",
        "samples of the report", "speed", "a store deleted behind Prefect's back",
    ],
)  # fmt: skip
def test_what_reruns(
    config: Path,
    change: Callable[[Path], None],
    settings: list[str],
    labels: set[str],
    rest: set[str],
):
    """After a change these labels are missing; when they are written, this is left and no more."""
    change(config)
    before = planned(config, settings)
    assert {item for item in before if item.startswith("label ")} == labels
    assert not {item for item in before if item.startswith("specialists ")}
    if labels:
        assert label(config, settings) > 0
    assert planned(config, settings) == rest


def test_a_new_report_template_rewrites_the_page_alone(
    config: Path, monkeypatch: pytest.MonkeyPatch
):
    """With another version of the page only the report is stale."""
    monkeypatch.setattr(training_runs, "REPORT_VERSION", REPORT_VERSION + 1)
    assert planned(config, []) == {"report report"}


@pytest.mark.parametrize(
    ("settings", "again"),
    [(["views.seed=1"], True), (["specialists.epochs=3"], True), (["labels.k=1"], False)],
)
def test_what_retrains_a_specialist(config: Path, settings: list[str], again: bool):
    """A specialist depends on the recipe and on its training, not on what is kept of it."""

    def folder(more: list[str]) -> Path | None:
        project = load_project(config, ["teachers.tints.weights=null", *more])
        update = update_manifest(project)
        return resolve_teachers(project, update.label_space, update.manifest)[1].folder

    assert (folder(settings) != folder([])) == again


def test_a_discarded_run_is_trained_from_its_first_step(config: Path):
    """`--again`: the finished run is forgotten, its labels and its control stay."""
    project = load_project(config)
    update = update_manifest(project)
    published = open_published(project, update.label_space, update.manifest, TRAIN)
    runs = student_runs(project, update.label_space, update.manifest, published)
    discard_run(runs[0])
    assert planned(config, []) == STUDENT | AFTER
    again = train_student(project, runs[0], update.label_space, update.manifest, published)
    assert again["resumed_from"] == 0
