"""Project files written to harm: refused in words, in bounded time, or loaded."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.config import Project, load_project
from pipeline.config.bounded_yaml import LARGEST_TEXT, read_yaml
from storage_schemas.errors import ConfigError

SECONDS = 20
SMALL = """
workspace: work
data: {source: image_folder, root: images}
teachers: [{name: birds, builder: 'torchvision:resnet18', classes: [a, b]}]
"""
LAUGHS = "\n".join(
    ["l0: &l0 [ha, ha]", *(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]" for i in range(1, 12))]
)
MERGES = "\n".join(
    [
        "m0: &m0 {a: 1, b: 2}",
        *(f"m{i}: &m{i} {{<<: [{', '.join([f'*m{i - 1}'] * 9)}]}}" for i in range(1, 12)),
    ]
)

FUZZ = settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def load(folder: Path, text: str | bytes) -> Project:
    """Load a project file of this content, within the time of a patient user."""
    path = folder / "project.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode(errors="surrogatepass"))
    started = time.monotonic()
    try:
        return load_project(path)
    finally:
        assert time.monotonic() - started < SECONDS


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"{SMALL}\n{LAUGHS}", "stands for more than"),
        (f"{SMALL}\n{MERGES}", "too large"),
        (f"{SMALL}\nlabels: &a {{k: *a}}", "nested more than"),
        (f"{SMALL}\nlabels: {'[' * 20_000}", "nested too deeply"),
        (f"{SMALL}\nlabels: {'[' * 40}{']' * 40}", "nested more than"),
        (f"{SMALL}\nreport: {{samples: {'1' * 5_000}}}", "digits"),
        (f"{SMALL}\nreport: {{samples: 0x{'f' * 5_000}}}", "digits"),
        (f"{SMALL}\nreport: {{samples: {':'.join(['59'] * 400_000)}}}", "digits"),
        (f"{SMALL}\nreport: {{samples: 2001-99-99}}", "month"),
        (f"{SMALL}\n# {'x' * LARGEST_TEXT}", "at most"),
        (f"{SMALL}\n\tlabels: 1", "not YAML"),
        (f"{SMALL}\nlabels: \0", "not YAML"),
        (f"{SMALL}\n? [a, b]\n: 1", "Input should be|Keys should be|not YAML"),
        (f"{SMALL}\n? {{a: 1}}\n: 1", "not YAML"),
        (f"{SMALL}\nlabels: !!python/object/apply:os.system ['touch ran']", "not YAML"),
        (f"{SMALL}\nstudent: {{optimizer: {{name: adamw, lr: .inf}}}}", "finite"),
        (f"{SMALL}\nstudent: {{ema_decay: .nan}}", "ema_decay"),
        (
            SMALL.replace("work\n", "'work\\0'\n").replace("'work", '"work').replace("0'", '0"'),
            "path",
        ),
        (SMALL.replace("work\n", "~nobody-here/work\n"), "path"),
        (SMALL.replace("work\n", "loop/work\n"), "path"),
        (SMALL.replace("birds", "../birds"), "teachers.0.name"),
        (SMALL.replace("birds", "..") + "", "teachers.0.name"),
        (SMALL + "student: {name: 'a/b'}", "student.name"),
        (b"\xff\xfe\x00\xd8", "cannot be read"),
        ("\ud800", "cannot be read"),
    ],
)
def test_hostile_files_are_refused(tmp_path: Path, text: str | bytes, reason: str) -> None:
    """Anchors that multiply, endless numbers and nesting, impossible paths: a short message."""
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert any(part in str(caught.value) for part in reason.split("|"))
    assert len(str(caught.value)) < 5_000
    assert not (tmp_path / "ran").exists()


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    """A project file that is a pipe is refused at once."""
    os.mkfifo(tmp_path / "project.yaml")
    with pytest.raises(ConfigError, match="regular file"):
        load_project(tmp_path / "project.yaml")


@pytest.mark.parametrize("override", ["labels.k=" + "[" * 5_000, "labels.k=2001-99-99", "a=\0"])
def test_hostile_overrides_are_refused(tmp_path: Path, override: str) -> None:
    """`--set` has the same limits as the file."""
    (tmp_path / "project.yaml").write_text(SMALL)
    with pytest.raises(ConfigError):
        load_project(tmp_path / "project.yaml", [override])


def test_anchors_and_merge_keys_of_people_work() -> None:
    """What is shared by hand loads as ever."""
    text = "a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: [*a, *a]\nd: 1_000\ne: 1.5e-3\nf: 0x10"
    assert read_yaml(text) == yaml.safe_load(text)


SCALARS = """~ .nan -.inf 1e999 0x1F 1:30 2020-01-01 *a {} [] yes !x ../.. / '' "\\0" "\\uD800" """
scalars = st.sampled_from([*SCALARS.split(), "!!set {a}", "&a 1", "!!binary aGk=", "{? : }"])
keys = st.sampled_from(sorted(Project.model_fields)) | st.sampled_from(
    ["<<", "k", "name", "root", "source", "classes", "weights", "? x", "\t", "0", "{a: 1}"]
)


@FUZZ
@given(lines=st.lists(st.tuples(st.integers(0, 3), keys, scalars | st.text(max_size=12))))
def test_any_text_is_a_project_or_our_error(
    tmp_path: Path, lines: list[tuple[int, str, str]]
) -> None:
    """Lines that look like settings, with any value and indentation, after a sound beginning."""
    text = SMALL + "\n".join(f"{'  ' * indent}{key}: {value}" for indent, key, value in lines)
    with contextlib.suppress(ConfigError):
        load(tmp_path, text)


@FUZZ
@given(content=st.binary(max_size=300))
def test_any_bytes_are_our_error(tmp_path: Path, content: bytes) -> None:
    """No bytes at all are a traceback."""
    with contextlib.suppress(ConfigError):
        load(tmp_path, content)
