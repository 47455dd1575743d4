"""Stores that nothing refers to, of labels and of features: which they are, and their removal.

In: what lies in a workspace's folders `labels` and `features`, what refers to it, and removal that
a kill cannot turn into half a store. Left out: which stores the project file would write now, which
needs the teachers (pipeline.teachers.stores.current_stores).

A store is referred to by its teacher's `published.json`, or by the project file. Of the others the
newest few are kept, so that a step back costs no labelling. One that is being written or read is
never touched: both of its locks are needed for removal. It is renamed first and deleted then, so
under its name it is whole or gone; what a killed removal leaves is listed and removed next time.
In a bucket, which has no rename, its metadata go first: without them there is no store. Readers
there hold no lock, so a store counts as in use for a day after its last write.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.locations import folder_size_and_time, is_local, remove_folder, storage_errors
from pipeline.store.block_feature_store import open_block_features
from pipeline.store.commit import sync
from pipeline.store.lock import busy_reason, removal_lock
from pipeline.store.opening import has_store, open_soft_labels
from pipeline.store.published import SPLIT_NAMES, published_path
from pipeline.store.published_features import published_features_path
from pipeline.workspace import Workspace, read_record
from storage_schemas.errors import ConcentrateError, ConfigError, StoreError

Action = Literal["keep", "remove", "removed"]
Report = Callable[[int, int], None]

KINDS = ("labels", "features")
_REMOVED = ".removed"
_PARTIAL = ".partial"

# Longer than any training run is likely to read a store that was replaced under it.
BUCKET_GRACE_SECONDS = 24 * 3600.0


@dataclass(frozen=True, kw_only=True)
class StoredItem:
    """A store, or what a dead process left of one.

    Attributes:
        store: Path in the workspace.
        teacher: Name of the folder it lies in.
        kind: labels or features.
        split: train or test; empty where it does not say.
        labels: Committed labels, or rows of features.
        bytes: Size of its files.
        written: Time of its last write, seconds since the epoch.
        action: keep; remove: nothing refers to it; removed: it is gone now.
        reason: Why.
    """

    store: str
    teacher: str
    kind: str
    split: str
    labels: int
    bytes: int
    written: float
    action: Action
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return dataclasses.asdict(self)


def find_garbage(
    workspace: Workspace,
    *,
    current: Collection[Path],
    teachers: Collection[str],
    keep: int = 1,
    only: str | None = None,
    report: Report | None = None,
) -> list[StoredItem]:
    """Return every store of a workspace with what is to become of it; changes nothing.

    Args:
        workspace: Of the project.
        current: Stores that the project file would write.
        teachers: Names in the project file.
        keep: Newest stores kept of those that nothing refers to, by teacher and split.
        only: A teacher; it need not be in the project file any more.
        report: Called with (done, all) stores.

    Raises:
        ConfigError: If `only` has no folder of labels or features.
    """
    folders = [
        path
        for kind in KINDS
        for path in sorted((workspace.root / kind).glob("*"))
        if path.is_dir() and not path.is_symlink()
    ]
    if only is not None:
        known = sorted({path.name for path in folders})
        if only not in known:
            raise ConfigError("--teacher", [f"must be one of {known}, got {only!r}"])
        folders = [path for path in folders if path.name == only]
    paths = [path for folder in folders for path in _candidates(folder)]
    found = []
    for done, path in enumerate(paths):
        found.append(_described(workspace, path, current, teachers))
        if report is not None:
            report(done + 1, len(paths))
    found.sort(key=lambda item: (item.teacher, item.kind != KINDS[0], item.split, -item.written))
    return _with_newest_kept(found, keep)


def _candidates(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        hidden = path.name.startswith(".") and path.suffix in (_REMOVED, _PARTIAL)
        if path.is_dir() and (hidden or (path.suffix == ".zarr" and path.name[0] != ".")):
            yield path


def _described(
    workspace: Workspace, path: Path, current: Collection[Path], teachers: Collection[str]
) -> StoredItem:
    teacher = path.parent.name
    split, labels = "", 0
    size, written = (0, 0.0) if path.is_symlink() else folder_size_and_time(path)
    action: Action = "keep"
    if path.is_symlink():
        reason = "a link"
    elif path.suffix == _REMOVED:
        action, reason = "remove", "removal was interrupted"
    elif path.suffix == _PARTIAL or not has_store(path):
        reason = busy_reason(_place_of(path)) or ""
        if not reason:
            action, reason = "remove", "left by a process that died"
    else:
        try:
            split, labels = _contents(path)
        except ConcentrateError as error:
            reason = f"cannot be read, delete it by hand: {error}"
        else:
            reason = _referred(workspace, path) or ""
            if reason and teacher not in teachers:
                reason += "; its teacher is not in the project file"
            elif path in current and not reason:
                reason = "of this project file, not complete"
            reason = reason or busy_reason(path) or ""
            if not reason and not is_local(path) and time.time() - written < BUCKET_GRACE_SECONDS:
                reason = "written less than a day ago; readers of a bucket hold no lock"
            if not reason:
                action, reason = "remove", "nothing refers to it"
    return StoredItem(
        store=str(path.relative_to(workspace.root)),
        teacher=teacher,
        kind=path.parent.parent.name,
        split=split,
        labels=labels,
        bytes=size,
        written=written,
        action=action,
        reason=reason,
    )


def _contents(path: Path) -> tuple[str, int]:
    is_labels = path.parent.parent.name == KINDS[0]
    store = open_soft_labels(path) if is_labels else open_block_features(path)
    return str(store.schema.split), int(store.commits[:, :, 0].sum())


def _referred(workspace: Workspace, path: Path) -> str | None:
    """Return what refers to a store: the record of its teacher, if anything."""
    teacher = path.parent.name
    record = workspace.published(teacher)
    if record.exists() and read_record(record) is None:
        return "published.json cannot be read"
    labels = [published_path(workspace, teacher, split) for split in range(len(SPLIT_NAMES))]
    published = [*labels, published_features_path(workspace, teacher)]
    return "published" if path in published else None


def _place_of(path: Path) -> Path:
    """Return the store itself, or the one that a leftover `.NAME.RANDOM.partial` was to be."""
    if path.suffix != _PARTIAL:
        return path
    return path.with_name(path.name.removeprefix(".").removesuffix(_PARTIAL).rpartition(".")[0])


def _with_newest_kept(found: Sequence[StoredItem], keep: int) -> list[StoredItem]:
    """Keep the newest of each teacher and split; the items are sorted, newest first."""
    seen: Counter[tuple[str, str, str]] = Counter()
    kept = []
    for item in found:
        place = item.teacher, item.kind, item.split
        if item.action == "remove" and item.split and seen[place] < keep:
            seen[place] += 1
            reason = f"unused, one of the newest {keep}"
            item = dataclasses.replace(item, action="keep", reason=reason)
        kept.append(item)
    return kept


def remove_garbage(
    workspace: Workspace, found: Sequence[StoredItem], *, report: Report | None = None
) -> list[StoredItem]:
    """Remove what `find_garbage` found to be removable; what is in use by now is kept.

    Raises:
        StoreError: If a store cannot be removed.
    """
    wanted = sum(item.action == "remove" for item in found)
    done = 0
    items = []
    for item in found:
        if item.action == "remove":
            refusal = _remove(workspace, workspace.root / item.store)
            item = dataclasses.replace(
                item,
                action="removed" if refusal is None else "keep",
                reason=item.reason if refusal is None else refusal,
            )
            done += 1
            if report is not None:
                report(done, wanted)
        items.append(item)
    return items


def _remove(workspace: Workspace, path: Path) -> str | None:
    """Remove one store or leftover; return why not where it is in use by now."""
    doomed = path
    try:
        if path.suffix != _REMOVED:
            with removal_lock(_place_of(path)) as busy:
                if busy or _referred(workspace, path):
                    return busy or "published since"
                if not is_local(path):
                    remove_folder(path, first="zarr.json")
                    return None
                if not path.name.startswith("."):
                    doomed = path.with_name(f".{path.name}{_REMOVED}")
                    if doomed.exists():  # of a removal that was killed
                        remove_folder(doomed)
                    path.rename(doomed)
                    sync([], path.parent)
        remove_folder(doomed)
    except FileNotFoundError:  # another process removes it too
        return None
    except storage_errors() as error:
        raise StoreError(f"{doomed} cannot be removed: {error}") from error
    return None
