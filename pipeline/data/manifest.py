"""Building the manifest from a source: what is new, changed, gone, back, or unreadable.

In: one update of the manifest, the label space and the quarantine list. Left out: the bytes on
disk (manifest_files.py) and what a manifest is (storage_schemas.manifest).

A sample with an unchanged stamp is not read. A new or changed one is decoded once here, so that
later stages meet no unreadable image.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipeline.config import Project
from pipeline.data.catalogue import open_source
from pipeline.data.label_noise import with_label_noise
from pipeline.data.manifest_files import (
    QUARANTINE,
    Stamps,
    has_manifest,
    load_label_space,
    load_manifest,
    load_stamps,
    save,
)
from pipeline.data.manifest_lock import exclusive
from pipeline.data.source import Sample, Source
from storage_schemas.errors import ConcentrateError, DataError, UnreadableImageError
from storage_schemas.label_space import LabelSpace
from storage_schemas.manifest import TEST, TRAIN, UNLABELLED, Manifest

READ_BLOCK = 256
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class ManifestUpdate:
    """What one update did, in samples.

    Attributes:
        manifest: After the update.
        label_space: After the update.
        added: New rows: samples that are new or have changed.
        retired: Rows whose sample is gone, unreadable or has changed.
        revived: Retired rows whose sample is back as it was.
        quarantined: Samples that cannot be read; listed in `<workspace>/data/quarantine.csv`.
        unchanged: Samples that keep their row.
    """

    manifest: Manifest
    label_space: LabelSpace
    added: int
    retired: int
    revived: int
    quarantined: int
    unchanged: int


def update_manifest(
    project: Project, *, progress: Progress | None = None, wait_seconds: float = 0
) -> ManifestUpdate:
    """Bring the manifest of a project's workspace up to date with its source.

    Args:
        project: Its `data`, `label_noise` and `workspace` count.
        progress: Called with (done, total) samples as they are read.
        wait_seconds: For how long to wait for another process that is updating it.

    Raises:
        DataError: If the source cannot be opened, holds nothing readable, or repeats a key.
        ManifestError: If the manifest on disk is damaged, or another update is running.
    """
    workspace = project.workspace
    with exclusive(workspace, wait_seconds):
        source = open_source(project.data, workspace)
        old, space = Manifest.empty(), LabelSpace(classes=())
        if has_manifest(workspace):
            old, space = load_manifest(workspace), load_label_space(workspace)
        samples = _listed(source)
        if project.label_noise is not None:
            samples = with_label_noise(samples, project.label_noise)
        known = load_stamps(workspace)
        digests, problems, stamps = _read(source, samples, old, known, progress)
        readable = [sample for sample in samples if sample.key in digests]
        if not readable:
            raise DataError(_nothing_readable(problems))
        space = _grown(space, source, readable)
        update = _merged(old, space, readable, digests, quarantined=len(problems))
        save(workspace, update.manifest, space, stamps if stamps != known else None, problems)
    return update


def _grown(space: LabelSpace, source: Source, samples: Iterable[Sample]) -> LabelSpace:
    """Return the label space with the classes of the samples, and the parents of all classes."""
    labelled = {sample.class_name for sample in samples if sample.class_name is not None}
    parents = source.parents({*space.classes, *labelled}, labelled)
    inner = {name for above in parents.values() for name in above}
    return replace(space.extended(labelled | inner), parents=parents)


def _nothing_readable(problems: Mapping[str, str]) -> str:
    if not problems:
        return "the data source holds no image; check data.root and the suffixes of its files"
    return (
        f"none of the {len(problems)} samples can be read; the first reason: "
        f"{next(iter(problems.values()))}. Check the settings under data"
    )


def _listed(source: Source) -> list[Sample]:
    samples = list(source.samples())
    seen: set[str] = set()
    for sample in samples:
        if sample.key in seen:
            raise DataError(f"sample keys must be unique, got {sample.key!r} twice")
        if sample.split not in (TRAIN, TEST):
            raise DataError(
                f"split must be {TRAIN} (train) or {TEST} (test), got {sample.split!r} for "
                f"{sample.key!r}"
            )
        seen.add(sample.key)
    return samples


def _read(
    source: Source,
    samples: Sequence[Sample],
    old: Manifest,
    known: Stamps,
    progress: Progress | None,
) -> tuple[dict[str, bytes], dict[str, str], Stamps]:
    """Return digests of readable samples, reasons of the others, and stamps for the next time."""
    digests: dict[str, bytes] = {}
    problems: dict[str, str] = {}
    stamps: Stamps = {}
    pending: list[tuple[str, tuple[int, int] | None]] = []
    for sample in samples:
        stamp = source.stamp(sample.key)
        cached = known.get(sample.key)
        if stamp is not None and cached is not None and cached[0] == stamp:
            digests[sample.key] = cached[1]
            stamps[sample.key] = cached
        else:
            pending.append((sample.key, stamp))

    def read(item: tuple[str, tuple[int, int] | None]) -> bytes | str:
        key = item[0]
        row = old.alive_by_key.get(key)
        decoded = b"" if row is None else old.digests[row].tobytes()
        return _digest_or_reason(source, key, decoded)

    old.alive_by_key  # noqa: B018 - built once here rather than by every thread
    with ThreadPoolExecutor(min(32, 2 * (os.cpu_count() or 1))) as threads:
        for start in range(0, len(pending), READ_BLOCK):
            block = pending[start : start + READ_BLOCK]
            for (key, stamp), found in zip(block, threads.map(read, block), strict=True):
                if isinstance(found, str):
                    problems[key] = found
                    continue
                digests[key] = found
                if stamp is not None:
                    stamps[key] = (stamp, found)
            if progress is not None:
                progress(start + len(block), len(pending))
    return digests, problems, stamps


def _digest_or_reason(source: Source, key: str, decoded: bytes) -> bytes | str:
    """Return the digest of a sample that decodes, else the reason why it does not.

    Args:
        source: Where the sample is.
        key: The sample.
        decoded: A digest whose content is known to decode.
    """
    try:
        digest = source.content_digest(key)
        if digest != decoded:
            mode = source.load(key).mode
            if mode not in ("L", "RGB"):
                return f"{key}: load must return mode 'L' or 'RGB', got {mode!r}"
    except UnreadableImageError as error:
        return str(error)
    except ConcentrateError:
        raise
    except Exception as error:  # a user's own source may raise anything; one sample is not fatal
        return f"{key}: {type(error).__name__}: {error}"
    return digest


def _merged(
    old: Manifest,
    space: LabelSpace,
    samples: Iterable[Sample],
    digests: Mapping[str, bytes],
    *,
    quarantined: int,
) -> ManifestUpdate:
    """Return the manifest in which exactly `samples` are alive."""
    alive = old.alive_by_key
    gone = {
        _content(old, row): row for row in np.flatnonzero(old.retired).tolist()
    }  # the latest row of equal ones
    kept: list[int] = []
    revived: list[int] = []
    new: list[tuple[Sample, int]] = []
    for sample in samples:
        label = UNLABELLED if sample.class_name is None else space.index[sample.class_name]
        content = (sample.key, label, sample.split, digests[sample.key])
        row = alive.get(sample.key)
        if row is not None and _content(old, row) == content:
            kept.append(row)
        elif content in gone:
            revived.append(gone[content])
        else:
            new.append((sample, label))
    new.sort(key=lambda item: _order(item[0]))
    shape = (len(new), old.digests.shape[1])
    content_bytes = b"".join(digests[sample.key] for sample, _ in new)
    manifest = old.with_retired(
        np.setdiff1d(np.arange(len(old)), np.array([*kept, *revived], np.int64))
    ).appended(
        keys=[sample.key for sample, _ in new],
        labels=np.array([label for _, label in new], np.int32),
        splits=np.array([sample.split for sample, _ in new], np.uint8),
        digests=np.frombuffer(content_bytes, np.uint8).reshape(shape),
    )
    return ManifestUpdate(
        manifest=manifest,
        label_space=space,
        added=len(new),
        retired=len(alive) - len(kept),
        revived=len(revived),
        quarantined=quarantined,
        unchanged=len(kept),
    )


def _content(manifest: Manifest, row: int) -> tuple[str, int, int, bytes]:
    return (
        manifest.keys[row],
        int(manifest.labels[row]),
        int(manifest.splits[row]),
        manifest.digests[row].tobytes(),
    )


def _order(sample: Sample) -> tuple[bool, str, str, str]:
    vertical, _, name = (sample.class_name or "").partition("/")
    return sample.class_name is None, vertical, name, sample.key


def quarantine_path(workspace: Path) -> Path:
    """Return where the list of unreadable samples lies."""
    return workspace / "data" / QUARANTINE
