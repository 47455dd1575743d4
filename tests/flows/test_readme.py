"""What the README shows is what works."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


@pytest.mark.flow
def test_the_store_in_dask_in_five_lines(steps, capsys):
    """The Dask block of the README runs on a real store and prints its teacher."""
    (block,) = [b for b in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "to_dask" in b]
    assert len([line for line in block.splitlines() if line.strip()]) <= 5
    steps.result("label_all")
    path = next(steps.folder.glob("work/labels/letters/*.zarr"))
    exec(compile(block, "README.md", "exec"), {"path": path})  # the README is ours
    assert "letters" in capsys.readouterr().out


def test_every_file_that_the_readme_links_to_is_there():
    """Relative links lead somewhere."""
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert links
    root = Path(__file__).parents[2]
    assert [link for link in links if not (root / link).exists()] == []


def test_every_verb_of_the_readme_exists():
    """No command line of the README names a verb that `concentrate` lacks."""
    from flows.cli import app

    verbs = {c.name or c.callback.__name__ for c in app.registered_commands if c.callback}
    shown = set(re.findall(r"concentrate (\w+) (?:[a-z./]|CONFIG)", README))
    assert shown
    assert shown <= verbs
