"""The whole pipeline with its workspace in a bucket of a real S3 protocol server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import Result

from pipeline.locations import bucket_of, folder_bytes
from pipeline.store import open_soft_labels
from pipeline.store.published import SPLIT_NAMES
from pipeline.store.published_labels import commits_digest

ROOT = Path(__file__).parents[2]
LETTERS_SHARDS = 10  # of the train store: 36 rows in shards of 8, 2 views


def committed(workspace: Path, teacher: str) -> int:
    """Return how many commit records a teacher's stores have."""
    found = bucket_of(workspace).find(str(workspace / "labels" / teacher))
    return sum("/commits/c/" in name for name in found)


def label_until_killed(folder: Path, workspace: Path) -> int:
    """Kill a labelling process with SIGKILL after its first commit record; returns their number."""
    from prefect.settings import PREFECT_API_URL

    environment = os.environ | {
        "PREFECT_API_URL": str(PREFECT_API_URL.value()),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "label", "project.yaml"],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        until = time.monotonic() + 120
        while not committed(workspace, "letters"):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < until, "nothing was labelled in time"
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()
    return committed(workspace, "letters")


def digests(workspace: Path, teacher: str) -> dict[str, str]:
    """Return the digest of all commit records of a teacher's published stores, by split."""
    record = json.loads((workspace / "labels" / teacher / "published.json").read_text())
    folder = workspace / "labels" / teacher
    return {
        split: commits_digest(open_soft_labels(folder / f"{record['stores'][split]}.zarr"))
        for split in SPLIT_NAMES
    }


@pytest.mark.service
def test_every_verb_works_in_a_bucket(
    project_folder: Path,
    bucket: Path,
    prefect_server: None,
    run_line: Callable[[Path, str], Result],
) -> None:
    """Specialists, label with a kill in the middle, verify, train, evaluate, report, predict."""
    folder, config = project_folder, project_folder / "project.yaml"
    text = config.read_text(encoding="utf-8")
    text = text.replace("shard_rows: 64, chunk_rows: 32", "shard_rows: 8, chunk_rows: 8")
    config.write_text(text.replace("workspace: work", f"workspace: {bucket}"), encoding="utf-8")

    def run(line: str) -> Any:
        result = run_line(folder, f"concentrate {line} --json")
        assert result.exit_code == 0, f"{line}\n{result.output}"
        return json.loads(result.stdout)

    assert [done["teacher"] for done in run("specialists project.yaml")] == ["shapes"]
    before = label_until_killed(folder, bucket)
    assert 0 < before < LETTERS_SHARDS
    done = run("label project.yaml")
    letters = [item for item in done if (item["teacher"], item["split"]) == ("letters", "train")]
    assert sum(item["shards"] for item in letters) == LETTERS_SHARDS - before

    run("label project.yaml --teacher letters --set workspace=undisturbed")
    assert digests(bucket, "letters") == digests(folder / "undisturbed", "letters")

    verified = run("verify project.yaml --depth full")
    assert [item["problems"] for item in verified] == [[]] * 4
    assert {item["role"] for item in run("train project.yaml")} == {"student", "control"}
    assert run("evaluate project.yaml")["runs"][0]["role"] == "student"
    whole = run("run project.yaml")  # only the report is missing
    assert whole["done"] == {"specialists": 0, "labels": 0, "runs": 0}
    assert whole["report"] == run("report project.yaml")["report"] == f"{bucket}/report/index.html"
    page = (bucket / "report" / "index.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "1 file does not decode" in page
    assert 'id="curves"' in page

    plan = run("plan project.yaml")
    assert (plan["work"], plan["free_bytes"]) == ([], None)
    (store,) = [path for path in (bucket / "labels" / "shapes").glob("*.zarr") if _is_train(path)]
    summary = run(f"inspect {store}")
    assert (summary["path"], summary["problems"]) == (str(store), [])
    assert summary["size_bytes"] == folder_bytes(store)
    (said,) = run(f"predict {bucket}/students/student IMAGES/letters/T/00.png")["predictions"]
    assert said["top"][0][0].startswith(("letters/", "shapes/"))

    kept = {path.relative_to(folder).parts[0] for path in folder.iterdir()}
    assert kept == {"IMAGES", "cache", "letters.safetensors", "letters.txt", "project.yaml"} | {
        "undisturbed"
    }
    names = bucket_of(bucket).find(str(bucket))
    assert not [name for name in names if name.endswith(".lock") or "partial" in name]


def test_a_bucket_that_fails_is_a_message(s3_server: str, capsys: pytest.CaptureFixture[str]):
    """What the libraries below raise when a server does not answer is no traceback."""
    from botocore.exceptions import EndpointConnectionError

    from flows.cli.options import user_errors

    with pytest.raises(typer.Exit) as caught, user_errors():
        raise EndpointConnectionError(endpoint_url="http://127.0.0.1:1")
    assert caught.value.exit_code == 2
    assert "error: the bucket of the workspace failed: Could not connect" in capsys.readouterr().err


def _is_train(store: Path) -> bool:
    return open_soft_labels(store).schema.split == "train"
