"""The command line on labels that are not the project's."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.flow


def test_training_from_foreign_labels_is_refused(tmp_path, tiny_project, run_line, prefect_server):
    """`train` exits with 2 and one message: field, expected, got, and what to do."""
    tiny_project.write_project(tmp_path, 16)
    tiny_project.label(tmp_path)
    tiny_project.write_weights(tmp_path / "tools.safetensors", seed=5)
    line = "concentrate train project.yaml --set views.flip=0.1 --set labels.temperatures=[1.0]"
    refused = run_line(tmp_path, line)
    assert refused.exit_code == 2
    for part in (
        "published labels; run `concentrate label`: 3 problems",
        "tools: temperatures must be (1.0,), got (1.0, 2.0)",
        "tools: recipe.flip must be 0.1, got 0.5",
        "tools: teacher.weights must be '",
    ):
        assert part in refused.output
    assert "Traceback" not in refused.output
    assert not (tmp_path / "work" / "students").exists()
