"""A labelling process killed at random instants of a store's whole life, and what is left of it.

The life of a small workspace: images listed, stores created, shards written and committed, stores
published; then images are added, the stores grow, and the new rows are labelled and published.
Each trial starts that life in a process of its own, ends it with SIGKILL at an instant drawn
uniformly over the length of an undisturbed life, every fourth time kills the resumed process too,
and lets the last one finish. The finished workspace must equal the undisturbed one: commit
digests, every label, the manifest, every file name (so nothing is left over), no child process.

Each process is forked from one that has imported torch and started no thread: a trial takes a
second instead of five.

    python benchmarks/kill_campaign.py --kills 100
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil

FIRST_IMAGES, ALL_IMAGES = 24, 36
START_METHOD = multiprocessing.get_context("forkserver")


def prepare(root: Path, ready: Any) -> None:
    """Write the project, and beside its images the larger set that replaces them."""
    from tiny_project import write_images, write_project

    write_project(root, FIRST_IMAGES)
    shutil.copytree(root / "images", root / "grown")
    write_images(root / "grown", range(FIRST_IMAGES, ALL_IMAGES))
    ready.send(None)


def live(root: Path, ready: Any) -> None:
    """Bring a workspace to the end of its life, from wherever it is."""
    import torch
    from tiny_project import label

    ready.send(None)
    torch.set_num_threads(1)
    if (root / "grown").exists():
        if (root / "images").exists():
            label(root)
            (root / "images").rename(root / "first")
        (root / "grown").rename(root / "images")
    label(root)


def examine(root: Path, answer: Any) -> None:
    """Send what a finished workspace holds, and everything that is wrong with it."""
    import numpy as np

    from pipeline.config import load_project
    from pipeline.data import load_label_space, load_manifest
    from pipeline.store import verify_store
    from pipeline.store.published import SPLIT_NAMES, open_published
    from pipeline.store.published_labels import commits_digest
    from storage_schemas.manifest import TEST, TRAIN

    project = load_project(root / "project.yaml")
    manifest, space = load_manifest(project.workspace), load_label_space(project.workspace)
    alive = [manifest.keys[row] for row in np.flatnonzero(~manifest.retired)]
    found: dict[str, Any] = {
        "manifest": manifest.digest,
        "files": sorted(str(path.relative_to(root)) for path in root.rglob("*")),
    }
    problems = [] if len(set(alive)) == len(alive) else ["a sample has two rows"]
    for split in (TRAIN, TEST):
        published = open_published(project, space, manifest, split)  # raises if a label is missing
        for store in published.stores:
            problems += verify_store(store, "full")
            rows = manifest.rows(split)
            labels = hashlib.sha256()
            for view in range(store.schema.num_views):
                for part in store.fetch_quantised(rows, np.full_like(rows, view)):
                    labels.update(part.tobytes())
            labelled = int(store.commits[:, :, 0].sum())
            if labelled != len(rows) * store.schema.num_views:
                problems.append(f"{labelled} labels of {len(rows)} rows in {SPLIT_NAMES[split]}")
            found[SPLIT_NAMES[split]] = {
                "fingerprint": store.schema.fingerprint,
                "commits": commits_digest(store),
                "labels": labels.hexdigest(),
                "labelled": labelled,
            }
    answer.send((found, problems))


def where_it_fell(root: Path) -> str:
    """Return what was being done when the process died, read from what it left behind."""
    labels = root / "work" / "labels" / "tools"
    stores = sorted(labels.glob("*.zarr"))
    if not (root / "work" / "data" / "manifest" / "manifest.json").exists():
        return "before the manifest is there"
    if list(labels.glob(".*.zarr.*.partial")):
        return "creating a store"
    for store in stores:
        for gaps in store.glob("gaps/c/*/*"):
            place = gaps.relative_to(store / "gaps") / "0"
            if not (store / "commits" / place).exists():
                both = (gaps / "0").exists() and (store / "ids" / place).exists()
                return "committing a shard" if both else "writing a shard"
    if len(stores) < 2:
        return "before both stores are there"
    if not (labels / "published.json").exists():
        return "between shards, or before the seal"
    if (root / "grown").exists():
        return "sealed, before images are added"
    documents = [json.loads((store / "zarr.json").read_bytes()) for store in stores]
    rows = {document["attributes"]["soft_labels"]["num_rows"] for document in documents}
    if rows == {3 * FIRST_IMAGES}:
        return "images added, before the stores grow"
    return "growing the stores, or between new shards" if len(rows) > 1 else "grown, near the end"


def started(target: Any, *arguments: Any) -> tuple[BaseProcess, Any]:
    """Return a new process at work, and the pipe on which it answers; it gets the other end."""
    here, there = multiprocessing.Pipe(duplex=False)
    process = START_METHOD.Process(target=target, args=(*arguments, there))
    process.start()
    there.close()
    return process, here


def finished(target: Any, *arguments: Any) -> Any:
    """Run in a new process to the end and return its answer.

    Raises:
        RuntimeError: If it fails.
    """
    process, answers = started(target, *arguments)
    try:
        answer = answers.recv()
    except EOFError:
        answer = None
    process.join()
    if process.exitcode != 0:
        raise RuntimeError(f"{target.__name__} ended with {process.exitcode}")
    return answer


def killed(root: Path, seconds: float) -> tuple[bool, list[int]]:
    """Start the life and kill it; return whether it was still alive, and orphans it left."""
    process, answers = started(live, root)
    answers.recv()
    time.sleep(seconds)
    assert process.pid is not None
    try:
        children = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        children = []
    process.kill()
    process.join()
    _, left = psutil.wait_procs(children, timeout=5)
    return process.exitcode == -9, [child.pid for child in left]


def campaign(kills: int, seed: int, folder: Path) -> dict[str, Any]:
    """Kill until that many processes died of it; compare every finished workspace.

    Args:
        kills: First kills, each of a life of its own.
        seed: Of the instants.
        folder: For the workspaces.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    # torch imports the last one for the first FLOP count: two thirds of a life if left to it.
    warm = ["tiny_project", "pipeline.teachers.publishing", "torch._dynamo"]
    START_METHOD.set_forkserver_preload(warm)
    template = folder / "template"
    finished(prepare, template)
    lengths = []
    for turn in range(3):
        root = folder / f"undisturbed-{turn}"
        shutil.copytree(template, root)
        process, answers = started(live, root)
        answers.recv()
        begun = time.perf_counter()
        process.join()
        lengths.append(time.perf_counter() - begun)
    expected, wrong = finished(examine, folder / "undisturbed-0")
    assert not wrong, wrong
    length = sorted(lengths)[1]
    draw = random.Random(seed)
    phases: Counter[str] = Counter()
    again, too_late, cluttered, trial = 0, 0, 0, 0
    problems: list[str] = []
    while sum(phases.values()) < kills:
        trial += 1
        root = folder / f"trial-{trial}"
        shutil.copytree(template, root)
        hit, orphans = killed(root, draw.uniform(0, length))
        if not hit:
            too_late += 1
            shutil.rmtree(root)
            continue
        phase = where_it_fell(root)
        phases[phase] += 1
        cluttered += any(root.rglob("*partial*"))
        if trial % 4 == 0:
            hit, more = killed(root, draw.uniform(0, length))
            again, orphans = again + hit, orphans + more
        try:
            finished(live, root)
            found, wrong = finished(examine, root)
            wrong += [f"{name} differs" for name in expected if found[name] != expected[name]]
        except RuntimeError as error:
            wrong = [str(error)]
        wrong += [f"process {pid} outlived its parent" for pid in orphans]
        problems += [f"trial {trial} ({phase}): {problem}" for problem in wrong]
        print(f"  kill {sum(phases.values())}: {phase}", *wrong, file=sys.stderr)
        if not wrong:
            shutil.rmtree(root)
    return {
        "seed": seed,
        "seconds_of_a_life": round(length, 3),
        "kills": sum(phases.values()),
        "killed_again_while_resuming": again,
        "ended_before_the_kill": too_late,
        "left_temporary_files": cluttered,
        "kills_by_phase": dict(phases.most_common()),
        "labels_compared_each_time": sum(expected[s]["labelled"] for s in ("train", "test")),
        "problems": problems,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="write the result there, not into results/")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        result = campaign(arguments.kills, arguments.seed, Path(folder))
    from measure import record

    record("kill_campaign", result, arguments.output)
    sys.exit(1 if result["problems"] else 0)


if __name__ == "__main__":
    main()
