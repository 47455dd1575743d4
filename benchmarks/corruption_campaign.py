"""Label stores damaged in every way we can think of: is it found, read, and repaired?

Each trial damages one published workspace: a flipped bit anywhere in data, records or metadata;
a file cut short at every kind of place; a shard emptied, deleted, or exchanged with another place
or another store. Asked of each:

- found: full verification reports it and names store, array, and the view and shard;
- safe: reading every label raises, or returns exactly what was written;
- repaired: what `concentrate verify` and `concentrate label` do brings back every commit digest
  and every label, and writes no shard but the damaged one.

    python benchmarks/corruption_campaign.py --flips 1000
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import record
from tiny_project import label, write_project

from pipeline.config import load_project
from pipeline.data import load_label_space, load_manifest
from pipeline.store import SoftLabelStore, open_soft_labels, take_out_of_use, verify_store
from pipeline.store.lock import writer_lock
from pipeline.store.published import (
    open_published,
    published_path,
    rows_to_label,
)
from pipeline.store.published_labels import commits_digest
from pipeline.workspace import Workspace
from storage_schemas.errors import ConcentrateError
from storage_schemas.manifest import TEST, TRAIN

IMAGES = 24
SPLITS = (TRAIN, TEST)


@dataclass(frozen=True, kw_only=True)
class Damage:
    """One way to damage a workspace.

    Attributes:
        kind: For the counts.
        file: Of a store, relative to the labels of the teacher.
        harm: Damages the file, given its path.
        names: What the report must name, beside the store.
        shards: How many shards must be labelled again.
    """

    kind: str
    file: Path
    harm: Callable[[Path], object]
    names: tuple[str, ...]
    shards: int


def place_of(file: Path) -> tuple[tuple[str, ...], int]:
    """Return what a report must name of a file in a store, and how many shards it costs."""
    _, *parts = file.parts
    if parts[-1] == "zarr.json":
        return (f"array {parts[0]}" if len(parts) > 1 else "the group",), 0
    array, _, view, shard, _ = parts
    return (array, f"view {view}, shard {shard}"), 1


def kind_of(file: Path) -> str:
    """Return what a file of a store is, in a word."""
    return "metadata" if file.name == "zarr.json" else file.parts[1]


def flip(bit: int) -> Callable[[Path], object]:
    """Return the harm that flips one bit."""

    def harm(file: Path) -> None:
        content = bytearray(file.read_bytes())
        content[bit // 8] ^= 1 << bit % 8
        file.write_bytes(content)

    return harm


def cut(size: int) -> Callable[[Path], object]:
    """Return the harm that keeps the first bytes only."""
    return lambda file: file.write_bytes(file.read_bytes()[:size])


def copied(source: Path) -> Callable[[Path], object]:
    """Return the harm that puts the bytes of another file in a file's place."""
    return lambda file: file.write_bytes(source.read_bytes())


def all_copied(store: Path) -> Callable[[Path], object]:
    """Return the harm that puts a shard with its record from another store in a shard's place."""

    def harm(file: Path) -> None:
        for array in ("ids", "gaps", "commits"):
            target = file.parents[4] / array / Path(*file.parts[-4:])
            shutil.copy(store / array / Path(*file.parts[-4:]), target)

    return harm


def all_deleted(file: Path) -> None:
    """Delete a whole shard, with its record."""
    for array in ("ids", "gaps", "commits"):
        (file.parents[4] / array / Path(*file.parts[-4:])).unlink()


def damages(labels: Path, other: Path, flips: int, seed: int) -> Iterator[Damage]:
    """Yield every damage of a campaign.

    Args:
        labels: Of the teacher, with a store per split.
        other: Labels of the same teacher with other weights.
        flips: How many bits are flipped, in files drawn uniformly.
        seed: Of files and bits.
    """
    files = sorted(f for f in labels.glob("*.zarr/**/*") if f.is_file())
    draw = random.Random(seed)

    def damage(kind: str, file: Path, harm: Callable[[Path], object], **fields: Any) -> Damage:
        relative = file.relative_to(labels)
        names, shards = place_of(relative)
        values = {"names": names, "shards": shards, **fields}
        return Damage(kind=f"{kind}, {kind_of(relative)}", file=relative, harm=harm, **values)

    for _ in range(flips):
        file = draw.choice(files)
        yield damage("one bit flipped", file, flip(draw.randrange(8 * file.stat().st_size)))
    for store in sorted(labels.glob("*.zarr")):
        documents = [f for f in files if f.name == "zarr.json" and store in f.parents]
        for document in documents:
            size = document.stat().st_size
            for length in (0, 1, size // 2, size - 1):
                yield damage("cut short", document, cut(length))
            yield damage("deleted", document, Path.unlink)
        shards = [f for f in files if f.name == "0" and store in f.parents]
        for shard in draw.sample(shards, min(9, len(shards))):
            size = shard.stat().st_size
            # In the first chunk, between the chunks, where the index begins, in it, at its end.
            for length in sorted(
                {0, 1, size // 4, size // 2, size - 37, size - 36, size - 4, size - 1}
            ):
                if 0 <= length < size:
                    yield damage("cut short", shard, cut(length))
            yield damage("deleted", shard, Path.unlink)
        for array in ("ids", "gaps"):
            for shard in sorted(store.glob(f"{array}/c/*/*/0"))[:4]:
                foreign = sorted(other.glob(f"*.zarr/{shard.relative_to(store)}"))
                for source in foreign:
                    yield damage("from another store", shard, copied(source))
                neighbours = sorted(store.glob(f"{array}/c/*/*/0"))
                source = neighbours[neighbours.index(shard) - 1]
                if source != shard:
                    yield damage("from another place", shard, copied(source))
        for shard in sorted(store.glob("ids/c/*/*/0"))[:4]:
            yield damage("whole shard deleted", shard, all_deleted)
            for foreign_store in sorted(other.glob("*.zarr")):
                if (foreign_store / shard.relative_to(store)).exists():
                    harm = all_copied(foreign_store)
                    yield damage("whole shard from another store", shard, harm)


class Workplace:
    """A published workspace and what it held when it was sound."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.project = load_project(root / "project.yaml")
        self.manifest = load_manifest(self.project.workspace)
        self.space = load_label_space(self.project.workspace)
        self.truth = self.labels()

    def stores(self) -> Iterator[Path]:
        """Yield the published stores."""
        for split in SPLITS:
            path = published_path(Workspace(self.project.workspace), "tools", split)
            assert path is not None
            yield path

    def _rows(self, store: SoftLabelStore) -> Any:
        return rows_to_label(self.project, self.space, self.manifest, store)

    def labels(self) -> list[Any]:
        """Return commit digests and all labels, as stored; raises if one cannot be read."""
        found: list[Any] = []
        for split in SPLITS:
            published = open_published(self.project, self.space, self.manifest, split)
            for store in published.stores:
                found.append(commits_digest(store))
                rows = self._rows(store)
                for view in range(store.schema.num_views):
                    found += store.fetch_quantised(rows, np.full_like(rows, view))
        return found

    def is_unchanged(self) -> bool:
        """Tell whether all labels and commit digests, read now, are what was written."""
        pairs = zip(self.labels(), self.truth, strict=True)
        return all(np.array_equal(found, expected) for found, expected in pairs)

    def verify(self) -> list[str]:
        """Do what `concentrate verify --depth full` does; return the problems."""
        problems = []
        for path in self.stores():
            try:
                store = open_soft_labels(path)
                found = verify_store(store, "full", self._rows(store))
                if found:
                    with writer_lock(path):
                        take_out_of_use(store, "full")
                problems += found
            except ConcentrateError as error:
                problems.append(str(error))
        return problems


def tried(workplace: Workplace, labels: Path, damage: Damage, repair: bool) -> list[str]:
    """Do one damage and return what went wrong; the workspace is sound afterwards."""
    file = labels / damage.file
    store = labels / damage.file.parts[0]
    backup = labels.parent / "backup.zarr"
    shutil.copytree(store, backup)
    damage.harm(file)
    wrong = []
    try:
        if not workplace.is_unchanged():
            wrong.append("a wrong label was read")
    except ConcentrateError:
        pass
    problems = workplace.verify()
    if not problems:
        wrong.append("not found")
    elif not any(all(name in p for name in (str(store), *damage.names)) for p in problems):
        wrong.append(f"{[str(store), *damage.names]} not named in {problems}")
    if repair:
        written = label(workplace.root)
        if written != damage.shards:
            wrong.append(f"{written} shards were written again instead of {damage.shards}")
        if not workplace.is_unchanged():
            wrong.append("labels differ after the repair")
        wrong += [f"after the repair: {problem}" for problem in workplace.verify()]
    if wrong or not repair:
        shutil.rmtree(store)
        backup.rename(store)
    else:
        shutil.rmtree(backup)
    return wrong


def campaign(
    *, flips: int, seed: int, sample: int | None, repair_every: int, folder: Path
) -> dict[str, Any]:
    """Damage a workspace in turn in every way.

    Args:
        flips: Bits to flip, one at a time.
        seed: Of files and bits.
        sample: Try only so many of all damages.
        repair_every: 1 has every damage repaired, n every n-th.
        folder: For the workspaces.
    """
    for name, weights in (("one", 0), ("two", 1)):
        write_project(folder / name, IMAGES, weights)
        label(folder / name)
    workplace = Workplace(folder / "one")
    labels, other = (folder / name / "work" / "labels" / "tools" for name in ("one", "two"))
    tries: Counter[str] = Counter()
    repairs = 0
    failures = []
    trials = list(damages(labels, other, flips, seed))
    if sample is not None:
        trials = random.Random(seed).sample(trials, sample)
    for number, damage in enumerate(trials):
        repair = number % repair_every == 0
        wrong = tried(workplace, labels, damage, repair)
        tries[damage.kind] += 1
        repairs += repair
        failures += [f"{damage.kind}: {damage.file}: {what}" for what in wrong]
        for what in wrong:
            print(f"  {damage.kind}: {damage.file}: {what}", file=sys.stderr)
        if number % 100 == 0:
            print(f"  {number} tried", file=sys.stderr)
    return {
        "seed": seed,
        "damages": sum(tries.values()),
        "by_kind": dict(sorted(tries.items())),
        "repaired": repairs,
        "failures": failures,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flips", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sample", type=int, help="try only so many of all damages")
    parser.add_argument("--repair-every", type=int, default=1)
    parser.add_argument("--output", type=Path, help="write the result there, not into results/")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        result = campaign(
            flips=arguments.flips,
            seed=arguments.seed,
            sample=arguments.sample,
            repair_every=arguments.repair_every,
            folder=Path(folder),
        )
    record("corruption_campaign", result, arguments.output)
    sys.exit(1 if result["failures"] else 0)


if __name__ == "__main__":
    main()
