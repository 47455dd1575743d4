"""The command line on a disk without room."""

from __future__ import annotations

import json
import shutil

import pytest

from flows.label_teachers import planned_teachers
from flows.project import reload
from storage_schemas.errors import StoreError

pytestmark = pytest.mark.flow


def test_without_room_it_does_not_start_and_in_the_middle_it_stops(
    disk, project_folder, run_line, prefect_server
):
    """`plan` exits with 1, `label` and `run` with 2; a disk that fills up ends in a message."""
    folder = disk.path / "project"
    shutil.copytree(project_folder, folder)
    letters = ["--teacher letters", "project.yaml"]
    many = "--set views.count=60000"

    planned = run_line(folder, f"concentrate plan project.yaml {many} --json")
    assert planned.exit_code == 1
    plan = json.loads(planned.stdout)
    assert not plan["fits"]
    assert plan["bytes"] > plan["free_bytes"] > 0
    table = run_line(folder, f"concentrate plan project.yaml {many}")
    assert (table.exit_code, "unless with --force" in table.output) == (1, True)
    for line in ("label project.yaml --teacher letters", "run project.yaml"):
        refused = run_line(folder, f"concentrate {line} {many}")
        assert refused.exit_code == 2
        assert f"{folder / 'work'}: labels and features take at most " in refused.output
        assert "--force" in refused.output
    assert not (folder / "work" / "labels").exists()
    loaded = reload(str(folder / "project.yaml"), ["views.count=60000"])
    with pytest.raises(StoreError, match="are free"):
        planned_teachers(loaded, "letters", force=False)
    assert planned_teachers(loaded, "letters", force=True) == ["letters"]

    line = f"concentrate label {' '.join(letters)}"
    with disk.full(leave=60_000):
        stopped = run_line(folder, line)
        assert stopped.exit_code == 2
        assert "No space left on device" in stopped.output
        assert "what is committed stays" in stopped.output
        assert "Traceback" not in stopped.output
    assert run_line(folder, line).exit_code == 0
    assert run_line(folder, f"concentrate plan {' '.join(letters[1:])}").exit_code == 0
