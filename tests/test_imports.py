"""The direction of imports (DESIGN section 2), read from the source of every module."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("storage_schemas", "pipeline", "flows")

SCHEMAS = {"numpy", "pydantic", "pydantic_core", "storage_schemas"}
PIPELINE = SCHEMAS | {"pipeline", "torch", "torchvision", "timm", "safetensors"}
PIPELINE |= {"PIL", "fontTools", "pyarrow", "yaml"}
MAY_IMPORT = {
    "storage_schemas": SCHEMAS,
    "pipeline": PIPELINE,
    "pipeline.store": PIPELINE | {"zarr", "numcodecs", "dask", "google_crc32c"},
    "pipeline.report": PIPELINE | {"matplotlib"},
    "pipeline.cluster": PIPELINE | {"dask"},
    "pipeline.locations": PIPELINE | {"s3fs", "upath"},
    "pipeline.object_lock": PIPELINE | {"fsspec"},
    "flows": {
        "flows",
        "pipeline",
        "storage_schemas",
        "prefect",
        "prefect_dask",
        "typer",
        "rich",
        "psutil",
        "pydantic",
        "yaml",
    },
}


@functools.cache
def module_files() -> dict[str, Path]:
    """Return module name -> file, for all our packages."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@functools.cache
def imports(module: str) -> frozenset[str]:
    """Return every name a module imports, inside functions too, `from a import b` as a and a.b."""
    path = module_files()[module]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module if path.stem == "__init__" else module.rpartition(".")[0]
            for _ in range(node.level - 1):
                package = package.rpartition(".")[0]
            base = ".".join(filter(None, (package if node.level else "", node.module or "")))
            found.update({base, *(f"{base}.{alias.name}" for alias in node.names)})
    return frozenset(found)


def with_parents(name: str) -> Iterator[str]:
    """Yield a, a.b, a.b.c: what Python runs to import a.b.c."""
    parts = name.split(".")
    yield from (".".join(parts[: end + 1]) for end in range(len(parts)))


def reachable(start: str) -> dict[str, str]:
    """Return every module of ours that a module may import at any time -> who imports it."""
    found = {start: ""}
    queue = [start]
    while queue:
        module = queue.pop()
        for name in (parent for found_ in imports(module) for parent in with_parents(found_)):
            if name in module_files() and name not in found:
                found[name] = module
                queue.append(name)
    return found


def chain(found: dict[str, str], module: str) -> str:
    """Return who imports whom, from the start to a module."""
    names = [module]
    while found[names[-1]]:
        names.append(found[names[-1]])
    return " -> ".join(reversed(names))


def layer(module: str) -> str:
    """Return the most particular rule that a module falls under."""
    return max((name for name in MAY_IMPORT if f"{module}.".startswith(f"{name}.")), key=len)


def test_a_layer_imports_only_what_lies_below_it():
    """storage_schemas < pipeline < flows; zarr and dask in pipeline/store, plots in the report."""
    wrong = [
        f"{module} imports {name}"
        for module in module_files()
        for name in sorted({found.partition(".")[0] for found in imports(module)})
        if name not in MAY_IMPORT[layer(module)] and name not in sys.stdlib_module_names
    ]
    assert wrong == []


def test_flows_touch_no_arrays():
    """No flow imports torch, zarr or dask arrays, not even inside a function."""
    heavy = {"torch", "zarr", "dask", "numpy"}
    wrong = [
        f"{module} imports {name}"
        for module in module_files()
        if layer(module) == "flows"
        for name in sorted(imports(module))
        if name.partition(".")[0] in heavy
    ]
    assert wrong == []


@pytest.mark.parametrize(
    "flow", ["flows.train_student", "flows.evaluate_student", "pipeline.training.distributed"]
)
def test_the_student_flows_reach_no_teacher(flow: str):
    """Nothing that training or evaluating a student may ever import imports pipeline.teachers."""
    found = reachable(flow)
    assert "pipeline.training" in found  # the walk follows imports inside functions
    teachers = [chain(found, name) for name in sorted(found) if "pipeline.teachers" in name]
    assert teachers == []


def test_the_walk_sees_lazy_imports():
    """The label flow imports its labelling inside a task, and the walk finds it."""
    found = reachable("flows.label_teachers")
    assert "pipeline.teachers.labelling" in found


def imported_by(statement: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter has after a statement."""
    code = f"import sys\n{statement}\nprint(*sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    return {name.partition(".")[0] for name in done.stderr.split()}


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        ("import flows.cli", {"torch", "prefect", "zarr", "numpy", "pydantic"}),
        (
            "from flows.cli import app\n"
            "sys.argv = ['concentrate', '--help']\n"
            "try: app()\n"
            "except SystemExit as end: assert not end.code",
            {"torch", "prefect", "zarr", "numpy", "pydantic"},
        ),
        ("import pipeline.config, pipeline.data", {"torch", "prefect", "zarr"}),
        ("import pipeline.starting", {"torch", "prefect", "zarr"}),
        ("import pipeline.plan", {"torch", "prefect"}),
    ],
    ids=["cli", "help", "data", "starting", "plan"],
)
def test_what_must_start_fast_imports_nothing_heavy(statement: str, heavy: set[str]):
    """The command line, its help, `init` and `plan` wait for no heavy library."""
    assert imported_by(statement) & heavy == set()
