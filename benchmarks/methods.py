"""Every method beside its control and its ablations: the evidence of the README's Methods section.

`methods.yaml` lists the rows. Those of a group share images, specialists and label stores; each is
one student, trained by the same loop for the same steps. Everything is made anew for each seed.
Prints progress, and writes `results/methods/<group>.json` after each row, so that a run that was
stopped goes on: a row whose result is there, by a digest of all its settings, is not made again,
and a student whose fingerprint is in the workspace is not trained again. `--fresh` forgets both.

    python benchmarks/methods.py --processes 2                    # everything
    python benchmarks/methods.py --group meal --row random --seeds 0

`methods_table.py` makes the README's table and plot of the results.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml
from measure import RESULTS, record
from stages import CONFIGS, Labelled, labelled_project, specialists_top1, trained

from pipeline.config import Project, load_project
from storage_schemas.fingerprint import fingerprint

ROWS = Path(__file__).with_name("methods.yaml")
WORKSPACE = Path(__file__).parents[1] / "runs" / "methods"
METRICS = ("top1", "top5", "top1_inside", "mpvap", "calibration_error")
# All that the glyph set has, of at least thirty classes each.
VERTICALS = (
    *("arrows", "armenian", "cyrillic", "georgian", "greek", "lao", "latin", "letterlike"),
    *("mathematics", "modifiers", "punctuation", "shapes", "symbols"),
)


def overrides(settings: Mapping[str, Any]) -> list[str]:
    """Return `key.path=value` settings; values are YAML."""
    return [f"{key}={json.dumps(value)}" for key, value in settings.items()]


def all_verticals(config: Path) -> dict[str, Any]:
    """Return the settings that widen a glyph project to all verticals.

    Where its teachers are specialists, each vertical gets one like the first of them.
    """
    teacher = yaml.safe_load(config.read_text(encoding="utf-8"))["teachers"][0]
    settings: dict[str, Any] = {"data.verticals": None}
    if teacher["classes"] != "all":
        settings["teachers"] = [
            {**teacher, "name": name, "classes": {"vertical": name}} for name in VERTICALS
        ]
    return settings


def seeded(seed: int, workspace: Path) -> dict[str, Any]:
    """Return the settings that make everything anew for a seed."""
    return {
        "workspace": str(workspace),
        "views.seed": seed,
        "specialists.seed": seed,
        "student.seed": seed,
        "student.control": False,
    }


def settings_digest(project: Project) -> str:
    """Return a digest of all that decides a result, which leaves out where and how it is run."""
    settings = project.model_dump(mode="json", exclude={"workspace", "runtime", "report"})
    return fingerprint(settings)


def row_result(labelled: Labelled) -> dict[str, Any]:
    """Train the student of a row where it is not there yet, and evaluate it."""
    evaluation = trained(labelled)
    found = evaluation["runs"][0]
    return {
        **{metric: found[metric] for metric in METRICS},
        "inside": {name: values["top1_inside"] for name, values in found["verticals"].items()},
        "run": Path(found["folder"]).name,
        "steps": found["steps"],
        "training_seconds": found["seconds"],
        **found["cost"],
        "specialists": {
            "top1_inside": specialists_top1(evaluation),
            "parameters": sum(
                teacher["cost"]["parameters"] for teacher in evaluation["specialists"].values()
            ),
            "inside": {
                name: teacher["top1"] for name, teacher in evaluation["specialists"].items()
            },
        },
    }


def group_results(
    name: str, group: Mapping[str, Any], rows: Sequence[str], seeds: Sequence[int], kept: Path
) -> None:
    """Run rows of a group for all seeds, and keep the results after each."""
    path = RESULTS / "methods" / f"{name}.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    results: dict[str, dict[str, Any]] = known.get("rows", {})
    config = CONFIGS / group["config"]
    for seed in seeds:
        for row in rows:
            own = group["rows"][row] or {}
            # Rows with other images, teachers or labels name a workspace of their own.
            workspace = kept / name / own.get("workspace", "shared") / f"seed-{seed}"
            own_settings = own.get("set", {})
            settings = {
                **all_verticals(config),
                **group.get("set", {}),
                **seeded(seed, workspace),
                **own_settings,
            }
            digest = settings_digest(load_project(config, overrides(settings)))
            results.setdefault(row, {"by_seed": {}})
            if results[row]["by_seed"].get(str(seed), {}).get("settings") == digest:
                continue
            started = time.perf_counter()
            labelled = labelled_project(config, overrides(settings))
            found = {"settings": digest, **row_result(labelled)}
            found["seconds"] = round(time.perf_counter() - started, 1)
            results[row] |= {"set": own_settings}
            results[row]["by_seed"][str(seed)] = found
            print(
                f"{name}, seed {seed}, {row}: top-1 {found['top1']:.2f}, mpvap "
                f"{found['mpvap']:.2f}, {found['seconds']:.0f} s",
                file=sys.stderr,
            )
            record(
                f"methods/{name}",
                {
                    "config": group["config"],
                    "set": group.get("set", {}),
                    "classes": len(labelled.space),
                    "images": len(labelled.manifest),
                    "rows": results,
                },
                path,
                quiet=True,
            )


def in_processes(count: int, groups: Sequence[str], arguments: Sequence[str]) -> None:
    """Run each group in a process of its own, with an equal part of the processor's threads.

    Small networks gain little from a second thread. Huge pages spare a tenth of a step.
    """
    threads = {"OMP_NUM_THREADS": f"{max(1, (os.cpu_count() or 1) // count)}"}
    environment = {"THP_MEM_ALLOC_ENABLE": "1"} | os.environ | threads

    def run(name: str) -> None:
        command = [sys.executable, __file__, "--group", name, *arguments]
        subprocess.run(command, check=True, env=environment)

    with ThreadPoolExecutor(count) as pool:
        list(pool.map(run, groups))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--group", nargs="*", help="only these")
    parser.add_argument("--row", nargs="*", help="only these rows of the groups")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workspace", type=Path, default=WORKSPACE)
    parser.add_argument("--fresh", action="store_true", help="forget earlier runs")
    parser.add_argument("--processes", type=int, default=1, help="groups at a time")
    arguments = parser.parse_args()
    groups = yaml.safe_load(ROWS.read_text(encoding="utf-8"))
    names = arguments.group or list(groups)
    if arguments.fresh:
        shutil.rmtree(arguments.workspace, ignore_errors=True)
        for name in names:
            (RESULTS / "methods" / f"{name}.json").unlink(missing_ok=True)
    if arguments.processes > 1:
        own = ["--workspace", f"{arguments.workspace}", "--seeds", *map(str, arguments.seeds)]
        own += ["--row", *arguments.row] if arguments.row else []
        in_processes(arguments.processes, names, own)
        return
    for name in names:
        group = groups[name]
        rows = [row for row in group["rows"] if row in (arguments.row or group["rows"])]
        group_results(name, group, rows, arguments.seeds, arguments.workspace)


if __name__ == "__main__":
    main()
