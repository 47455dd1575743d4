"""Labels of another teacher, of other images or settings: refused, every field in one message."""

from __future__ import annotations

import json

import pytest
import yaml

from pipeline.config import load_project
from pipeline.data import update_manifest
from pipeline.store import open_soft_labels
from pipeline.store.published import open_published, published_path
from pipeline.teachers.spec import resolve_teacher
from pipeline.teachers.stores import store_path, store_schema
from pipeline.workspace import Workspace
from storage_schemas.errors import SchemaMismatchError
from storage_schemas.label_space import canonical_digest
from storage_schemas.manifest import TRAIN


@pytest.fixture
def root(tmp_path, tiny_project):
    """A labelled tiny project."""
    tiny_project.write_project(tmp_path, 16)
    tiny_project.label(tmp_path)
    return tmp_path


def published(root):
    """Path of the published training store."""
    project = load_project(root / "project.yaml")
    return published_path(Workspace(project.workspace), "tools", TRAIN)


def refused(root, *overrides):
    """Problems with which a student's side refuses the published labels."""
    project = load_project(root / "project.yaml", overrides)
    update = update_manifest(project)
    with pytest.raises(SchemaMismatchError) as caught:
        open_published(project, update.label_space, update.manifest, TRAIN)
    return list(caught.value.problems)


def refused_by_schema(root, store, *overrides):
    """Problems with which a teacher's side refuses a store in place of its own."""
    project = load_project(root / "project.yaml", overrides)
    update = update_manifest(project)
    spec = resolve_teacher(project, project.teachers[0], update.label_space, update.manifest)
    schema = store_schema(project, spec, update.label_space, update.manifest, TRAIN)
    assert store_path(project, schema) != store
    with pytest.raises(SchemaMismatchError) as caught:
        open_soft_labels(store, expected=schema)
    return list(caught.value.problems)


def test_other_weights_are_refused(root, tiny_project):
    """Another checkpoint under the same name: both digests are named."""
    store = published(root)
    tiny_project.write_weights(root / "tools.safetensors", seed=5)
    (problem,) = refused(root)
    assert problem.startswith("tools: teacher.weights must be '")
    (problem,) = refused_by_schema(root, store)
    assert problem.startswith("fingerprint_parts.weights must be '")
    assert ", got '" in problem


def test_another_class_map_is_refused(root):
    """The same classes in another order: the first that differs is named, and how many more."""
    store = published(root)
    order = "teachers.tools.classes=[saw, file, axe]"
    wanted = "class 0 must be 'all/saw', got 'all/axe' (and 1 more)"
    assert refused(root, order) == [f"tools: {wanted}"]
    problems = refused_by_schema(root, store, order)
    assert wanted in problems
    assert any(problem.startswith("fingerprint_parts.classes must be") for problem in problems)


def test_other_images_under_the_same_names_are_refused(root, tiny_project, tmp_path_factory):
    """Labels copied into a workspace with other pixels of the same file names."""
    from PIL import Image

    other = tmp_path_factory.mktemp("other")
    tiny_project.write_project(other, 16)
    for path in (other / "images").rglob("*.png"):
        Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)
    store = published(root)
    (other / "work").mkdir()
    (root / "work" / "labels").rename(other / "work" / "labels")
    (problem,) = refused(other)
    assert problem.startswith("tools: made for other images: the manifest must begin with the 48")
    store = other / store.relative_to(root)
    assert [problem.partition(" ")[0] for problem in refused_by_schema(other, store)] == [
        "manifest_chain",
        "fingerprint_parts.manifest",
    ]


def test_another_recipe_is_refused_field_by_field(root):
    """Each differing field of the view recipe is named with both values, and no other."""
    changes = ("views.flip=0.1", "views.seed=7")
    problems = refused(root, *changes)
    assert [problem.partition(",")[0] for problem in problems] == [
        "tools: recipe.flip must be 0.1",
        "tools: recipe.seed must be 7",
    ]
    problems = refused_by_schema(root, published(root), *changes)
    assert "recipe.flip must be 0.1, got 0.5" in problems
    assert "recipe.seed must be 7, got 0" in problems


def test_a_newer_schema_is_refused(root):
    """A store of a later release is named as such, with every field that is not understood."""
    file = published(root) / "zarr.json"
    document = json.loads(file.read_bytes())
    document["attributes"]["soft_labels"].update(version=2, codebook=[1])
    signed = {name: document["attributes"][name] for name in ("soft_labels", "arrays")}
    document["attributes"]["digest"] = canonical_digest(signed)
    file.write_text(json.dumps(document, indent=2))
    problems = refused(root)
    assert problems[0].startswith("tools: version must be 1, got 2; it was written by a newer")
    assert problems[1] == "tools: codebook is not a field of version 1"


def test_several_wrong_things_are_listed_at_once(root, tiny_project):
    """Weights, classes, recipe and label settings: one message with all of them."""
    tiny_project.write_weights(root / "tools.safetensors", seed=5)
    settings = yaml.safe_load((root / "project.yaml").read_text())
    settings["teachers"][0] |= {"classes": ["saw", "file", "axe"], "routing": "all"}
    settings["views"] |= {"flip": 0.25}
    settings["labels"] |= {"k": 3, "temperatures": [1.0], "precision": "exact"}
    (root / "project.yaml").write_text(yaml.safe_dump(settings))
    problems = refused(root)
    named = [problem.removeprefix("tools: ").partition(" must be ")[0] for problem in problems]
    assert named == [
        "temperatures",
        "precision",
        "k",
        "class 0",
        "recipe.flip",
        "teacher.routing",
        "teacher.weights",
    ]
    assert all(", got " in problem for problem in problems)
