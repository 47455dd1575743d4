"""The project file: every problem at once, overrides, paths, bounds."""

from __future__ import annotations

import contextlib

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.config import Project, load_project
from storage_schemas.errors import ConcentrateError, ConfigError

SMALL = {
    "workspace": "work",
    "data": {"source": "image_folder", "root": "images"},
    "teachers": [{"name": "birds", "builder": "torchvision:resnet18", "classes": ["a", "b"]}],
}


def write(folder, tree):
    """Write a project file."""
    path = folder / "project.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def test_smallest_file_loads_with_paths_relative_to_it(tmp_path):
    """Three keys are enough, and relative paths start at the project file."""
    project = load_project(write(tmp_path, SMALL))
    assert project.workspace == tmp_path / "work"
    assert project.data.root == tmp_path / "images"
    assert project.teacher("birds").weights is None


def test_every_problem_is_reported_at_once(tmp_path):
    """Unknown keys, values out of bounds and missing keys come in one message."""
    tree = SMALL | {
        "veiws": {"count": 2},
        "labels": {"k": 0},
        "student": {"epochs": -1, "optimizer": {"name": "adamw", "lrate": 1}},
        "teachers": [{"name": "birds", "classes": ["a"]}],
    }
    with pytest.raises(ConfigError) as caught:
        load_project(write(tmp_path, tree))
    text = str(caught.value)
    assert "5 problems" in text
    assert "veiws: unknown key; did you mean 'views'?" in text
    assert "labels.k" in text
    assert "student.epochs" in text
    assert "student.optimizer.lrate: unknown key" in text
    assert "teachers.0.builder: required, and missing" in text


def test_overrides_set_values_and_reach_into_lists_by_name(tmp_path):
    """--set takes YAML values; an entry of a list is found by its name."""
    project = load_project(
        write(tmp_path, SMALL),
        ["student.epochs=7", "labels.temperatures=[1.0, 4]", "teachers.birds.batch_size=3"],
    )
    assert project.student.epochs == 7
    assert project.labels.temperatures == (1.0, 4.0)
    assert project.teachers[0].batch_size == 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("student.epochs", "must be key.path=value"),
        ("teachers.fish.batch_size=3", "no entry named 'fish'"),
        ("workspace.deeper.still=1", "is below a plain value"),
        ("labels.k=[1", "is not YAML"),
        ("student.epoch=3", "unknown key; did you mean 'epochs'?"),
    ],
)
def test_bad_overrides_are_refused(tmp_path, override, message):
    """An override that cannot be applied says why."""
    with pytest.raises(ConfigError) as caught:
        load_project(write(tmp_path, SMALL), [override])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teachers": SMALL["teachers"] * 2}, r"names must differ, got \['birds'\]"),
        ({"teachers": []}, "teachers"),
        (
            {"student": {"objective": {"name": "soft_labels", "temperature": 3.0}}},
            r"must be one of labels.temperatures \[1.0\], got 3.0",
        ),
        ({"labels": {"activation": "sigmoid"}}, "does not fit the objective"),
        ({"labels": {"top_p": 0.5}}, "top_p must be left out under selection top_k, got 0.5"),
        ({"labels": {"selection": "top_p", "top_p": 0}}, "labels.top_p"),
        (
            {"labels": {"selection": "sampled", "activation": "sigmoid", "k": 300}},
            "(?s)needs activation softmax, got sigmoid.*at most 254 with precision compact, got 3",
        ),
        (
            {"labels": {"selection": "sampled", "temperatures": [1.0, 2.0]}},
            r"needs one temperature, the one at which it draws, got \[1.0, 2.0\]",
        ),
        ({"student": {"views_per_image": 9}}, "at most views.count"),
        ({"labels": {"shard_rows": 10, "chunk_rows": 3}}, "multiple of chunk_rows"),
        ({"student": {"input": {"mean": [0.5]}}}, "one value per channel"),
        ({"teachers": [SMALL["teachers"][0] | {"name": "../out"}]}, "teachers.0.name"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(tmp_path, change, message):
    """Contradictions are found before anything runs."""
    with pytest.raises(ConfigError, match=message):
        load_project(write(tmp_path, SMALL | change))


@pytest.mark.parametrize(
    "text", ["", "[1, 2]", "a: [", "\x00", "a: &a [*a]", "!!python/object:os.system x"]
)
def test_files_that_are_not_a_mapping_are_refused(tmp_path, text):
    """Empty files, lists, broken YAML and tags that would run code are user errors."""
    path = tmp_path / "project.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError):
        load_project(path)


def test_missing_file_says_what_to_do(tmp_path):
    """A path without a file points to `concentrate init`."""
    with pytest.raises(ConfigError, match="`concentrate init` writes one"):
        load_project(tmp_path / "nothing.yaml")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(tree=st.dictionaries(st.sampled_from(sorted(Project.model_fields)), values, max_size=6))
def test_any_yaml_is_accepted_or_refused_never_a_traceback(tmp_path, tree):
    """Whatever the file holds, loading gives a project or our own error."""
    path = write(tmp_path, SMALL | tree)
    with contextlib.suppress(ConcentrateError):
        load_project(path)


def test_a_nucleus_keeps_95_percent_unless_told(tmp_path):
    """top_p has a default of its own where it is the selection, and none elsewhere."""
    assert load_project(write(tmp_path, SMALL)).labels.top_p is None
    nucleus = SMALL | {"labels": {"selection": "top_p"}}
    assert load_project(write(tmp_path, nucleus)).labels.top_p == 0.95
    assert load_project(write(tmp_path, nucleus), ["labels.top_p=0.8"]).labels.top_p == 0.8


@pytest.mark.parametrize("selection", ["top_k", "top_p", "sampled"])
def test_round_trip_through_json(tmp_path, selection):
    """A project's JSON form loads to an equal project."""
    project = load_project(write(tmp_path, SMALL | {"labels": {"selection": selection}}))
    assert Project.model_validate(project.model_dump(mode="json")) == project
