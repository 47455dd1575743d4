"""A failed verification, at every depth: exit code 1, and artifacts on a real Prefect server."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import Result

Run = Callable[[Path, str], Result]

pytestmark = [pytest.mark.flow, pytest.mark.filterwarnings("default")]


@pytest.fixture
def labelled(steps: Any, tmp_path: Path) -> Path:
    """A copy of the project with all its labels, to damage."""
    steps.result("verify")
    folder = tmp_path / "copy"
    shutil.copytree(steps.folder, folder)
    return folder


def train_store(folder: Path, teacher: str) -> Path:
    """Return the published training store of a teacher."""
    published = folder / "work" / "labels" / teacher / "published.json"
    record = json.loads(published.read_text(encoding="utf-8"))
    return published.with_name(f"{record['stores']['train']}.zarr")


def newest_artifact(key: str) -> tuple[str, str]:
    """Return the data of the newest artifact of a key, and the state of its flow run."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
    from prefect.client.schemas.sorting import ArtifactSort

    with get_client(sync_client=True) as client:
        (artifact,) = client.read_artifacts(
            artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])),
            sort=ArtifactSort.CREATED_DESC,
            limit=1,
        )
        run = client.read_flow_run(artifact.flow_run_id)
    return str(artifact.data), str(run.state.type.value)


def damage(store: Path) -> str:
    """Flip a byte of a shard's data; return the shard's name as messages have it."""
    shard = min(store.glob("gaps/c/*/*/0"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 0x10
    shard.write_bytes(content)
    view, number = shard.parts[-3:-1]
    return f"view {view}, shard {number}"


@pytest.mark.parametrize("depth", ["full", "audit"])
def test_a_failed_check_leaves_artifacts(labelled: Path, run_line: Run, depth: str) -> None:
    """A flipped byte: exit code 1, a failed run, its shard in both the message and the artifact."""
    place = damage(train_store(labelled, "shapes"))
    result = run_line(labelled, f"concentrate verify project.yaml --depth {depth}")
    assert (result.exit_code, result.stdout) == (1, "")
    assert place in result.stderr
    text, state = newest_artifact("verify-problems")
    assert state == "FAILED"
    assert f"({depth})" in text
    assert "shapes / train" in text
    assert place in text.replace("\\", "")
    assert "`concentrate label`" in text
    table, _ = newest_artifact("verify")
    assert [row["problems"] for row in json.loads(table)] == [0, 0, 1, 0]
    again = run_line(labelled, "concentrate label project.yaml --json")
    assert [(r["teacher"], r["shards"]) for r in json.loads(again.stdout)] == [("shapes", 1)]


def test_an_audit_of_sound_stores(labelled: Path, run_line: Run) -> None:
    """Every store gives as many labels as asked, all of them as the teacher says now."""
    line = "concentrate verify project.yaml --depth audit --sample 5 --json"
    found = json.loads(run_line(labelled, line).stdout)
    assert [(item["teacher"], item["split"]) for item in found] == [
        (teacher, split) for teacher in ("letters", "shapes") for split in ("train", "test")
    ]
    for item in found:
        assert (item["depth"], item["checked"], item["problems"]) == ("audit", 5, [])
        assert item["same_codes"] == 1
        assert item["mean_kl"] < 1e-6
    text, state = newest_artifact("verify-problems")
    assert (state, "no problems in 4 stores" in text) == ("COMPLETED", True)


def test_an_audit_finds_labels_of_other_weights(labelled: Path, run_line: Run) -> None:
    """Labels of one network under the name of another: one row, its answers and the KL shown."""
    state = load_file(labelled / "letters.safetensors")
    other = state | {"fc.bias": torch.tensor([-1.0, 1.0, 3.0])}
    own, new = train_store(labelled, "letters"), labelled / "letters.safetensors"
    save_file(other, new)
    assert run_line(labelled, "concentrate label project.yaml").exit_code == 0
    lying = train_store(labelled, "letters")
    assert lying != own
    # Its labels are put into a store that claims the first weights, with records that fit.
    _relabel_as(own, lying)
    save_file(state, new)
    assert run_line(labelled, "concentrate label project.yaml").exit_code == 0
    assert run_line(labelled, "concentrate verify project.yaml --depth full").exit_code == 0
    result = run_line(labelled, "concentrate verify project.yaml --depth audit --teacher letters")
    assert (result.exit_code, result.stdout) == (1, "")
    for part in ("letters/train: ", "sampled labels are not what the teacher says", "mean KL"):
        assert part in result.stderr
    assert "letters/test" not in result.stderr
    text, state_of_run = newest_artifact("verify-problems")
    assert state_of_run == "FAILED"
    assert "sampled labels are not what the teacher says" in text


def _relabel_as(target: Path, source: Path) -> None:
    from pipeline.store import open_soft_labels

    claims, says = open_soft_labels(target), open_soft_labels(source)
    for view, shard in zip(*says.commits[:, :, 0].nonzero(), strict=True):
        claims.write_shard(int(view), int(shard), *says.read_shard(int(view), int(shard)))


def test_a_teacher_without_its_weights_is_a_problem_of_its_stores(
    labelled: Path, run_line: Run
) -> None:
    """Nothing to run again: said for that teacher alone, and the others are audited."""
    (labelled / "letters.safetensors").unlink()
    result = run_line(labelled, "concentrate verify project.yaml --depth audit --sample 3")
    assert result.exit_code == 1
    assert "letters/train: teachers.letters.weights" in result.stderr
    assert "no file at" in result.stderr
    assert "shapes" not in result.stderr.partition("error: ")[2]
    assert run_line(labelled, "concentrate verify project.yaml").exit_code == 0


def test_markdown_shows_names_as_they_are() -> None:
    """Nothing from outside is markup in an artifact, and no problem breaks its line."""
    from flows.artifacts import verification

    name = "a|b\n# c <img src=x> [d](e) \x1b[31m\u202e`f`"
    text = verification([{"teacher": name, "split": "train", "problems": [name]}], "full")
    (line,) = (line for line in text.splitlines() if line.startswith("- "))
    assert line == ("- a\\|b \\# c &lt;img src=x&gt; \\[d\\]\\(e\\) \ufffd\\[31m\ufffd\\`f\\`")
