"""The manifest, the label space and the quarantine list on disk.

In: `<workspace>/data/manifest/` with one parquet file per append and manifest.json, written last;
label_space.json; quarantine.csv; the stamps of files read so far (a cache: safe to delete).
Left out: what changes between two updates (manifest.py).

manifest.json names the parts that count, so a crash before it is written leaves the old manifest
whole; a part or a class written too early is ignored and written again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.manifest_index import index_problem, part_name
from pipeline.data.quarantine import quarantine_csv
from pipeline.durable_files import write_durably
from pipeline.locations import read_whole
from pipeline.workspace import inside
from storage_schemas.errors import LabelSpaceError, ManifestError
from storage_schemas.label_space import LabelSpace, canonical_digest
from storage_schemas.manifest import (
    DIGEST_BYTES,
    MANIFEST_VERSION,
    TEST,
    TRAIN,
    UNLABELLED,
    Manifest,
)

INDEX = "manifest.json"
LABEL_SPACE = "label_space.json"
QUARANTINE = "quarantine.csv"
STAMPS = "stamps.parquet"
REBUILD = "restore it from a backup, or start a new workspace"

PART = pa.schema(
    [
        ("key", pa.large_string()),
        ("label", pa.int32()),
        ("split", pa.uint8()),
        ("digest", pa.binary(DIGEST_BYTES)),
    ]
)

Stamps = dict[str, tuple[tuple[int, int], bytes]]
"""Key -> (stamp, digest) of every sample that was read and decodes."""


def has_manifest(workspace: Path) -> bool:
    """Tell whether a manifest has been written."""
    return (manifest_folder(workspace) / INDEX).exists()


def load_manifest(workspace: Path) -> Manifest:
    """Read the manifest and check its chain.

    Raises:
        ManifestError: If there is none, or it is damaged, altered or of a newer version.
    """
    folder = manifest_folder(workspace)
    index = _load_index(folder)
    ends = tuple(append["rows"] for append in index["appends"])
    begins = (0, *ends[:-1])
    table = pa.concat_tables(
        _load_part(folder / append["part"], append["rows"] - begin)
        for append, begin in zip(index["appends"], begins, strict=True)
    )
    rows = len(table)
    manifest = Manifest(
        keys=np.array(table.column("key").to_pylist(), np.object_),
        labels=_values(table.column("label"), np.dtype(np.int32)),
        splits=_values(table.column("split"), np.dtype(np.uint8)),
        digests=_values(table.column("digest"), np.dtype((np.uint8, DIGEST_BYTES))),
        appends=np.repeat(np.arange(len(ends), dtype=np.int32), np.diff([0, *ends])),
        retired=np.zeros(rows, np.bool_),
        chains=tuple(append["chain"] for append in index["appends"]),
        append_ends=ends,
    )
    del table
    problem = manifest.chain_problem()
    if problem is not None:
        raise ManifestError(f"{folder}: {problem}; a part was altered: {REBUILD}")
    known = (manifest.labels >= UNLABELLED) & (manifest.labels < index["num_classes"])
    if not (known & np.isin(manifest.splits, (TRAIN, TEST))).all():
        raise ManifestError(f"{folder}: a row has no class or split of the project; {REBUILD}")
    return manifest.with_retired(index["retired"])


def _values(column: pa.ChunkedArray, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Return values of fixed width without an object for each.

    Not by `to_numpy`, which imports pandas where that is installed: half a second.
    """
    found = [np.frombuffer(b"", dtype)]
    for chunk in column.chunks:
        values = np.frombuffer(chunk.buffers()[1], dtype)
        found.append(values[chunk.offset : chunk.offset + len(chunk)])
    return np.concatenate(found)


def read_index(workspace: Path) -> dict[str, Any]:
    """Read manifest.json and check its digest.

    Raises:
        ManifestError: If there is no manifest, or it is damaged, altered or of a newer version.
    """
    return _load_index(manifest_folder(workspace))


def read_part(workspace: Path, position: int, rows: int, columns: Sequence[str]) -> pa.Table:
    """Read some columns of one append.

    Args:
        workspace: The project's.
        position: Of the append in the index.
        rows: How many rows it holds by the index.
        columns: Of `PART`.

    Raises:
        ManifestError: If it cannot be read.
    """
    return _load_part(manifest_folder(workspace) / part_name(position), rows, columns)


def load_label_space(workspace: Path) -> LabelSpace:
    """Read the label space and check that it begins with the classes the manifest knows.

    Raises:
        ManifestError: If it is missing, damaged, or its classes were changed or reordered.
    """
    path = workspace / "data" / LABEL_SPACE
    index = _load_index(manifest_folder(workspace))
    try:
        space = LabelSpace.from_dict(json.loads(read_whole(path)))
    except (OSError, ValueError, RecursionError, LabelSpaceError) as error:
        raise ManifestError(f"{path} cannot be read: {error}; {REBUILD}") from error
    known = space.classes[: index["num_classes"]]
    if _classes_digest(known) != index["classes_digest"]:
        raise ManifestError(
            f"{path}: the first {index['num_classes']} classes must be the ones the manifest was "
            f"built with, got others; classes are only ever appended: {REBUILD}"
        )
    return space


def load_stamps(workspace: Path) -> Stamps:
    """Read the stamps of the last update; empty when there are none to be read."""
    try:
        columns = _table(manifest_folder(workspace) / STAMPS).to_pydict()
        stamps = zip(columns["size"], columns["time"], strict=True)
        found = zip(columns["key"], stamps, columns["digest"], strict=True)
        return {key: (stamp, digest) for key, stamp, digest in found}
    except (OSError, pa.ArrowException, KeyError):
        return {}


def save(
    workspace: Path,
    manifest: Manifest,
    space: LabelSpace,
    stamps: Stamps | None,
    problems: Mapping[str, str],
) -> None:
    """Write what an update changed, manifest.json last.

    Args:
        workspace: The project's.
        manifest: Parts already on disk under the same chain are not written again.
        space: The label space.
        stamps: For the next update; None: those on the disk still hold.
        problems: Key -> reason of unreadable samples.
    """
    folder = manifest_folder(workspace)
    done = _load_index(folder)["appends"] if has_manifest(workspace) else []
    appends: list[dict[str, Any]] = [
        {"part": part_name(position), "rows": end, "chain": chain}
        for position, (chain, end) in enumerate(
            zip(manifest.chains, manifest.append_ends, strict=True)
        )
    ]
    begin = done[-1]["rows"] if done else 0
    for append in appends[len(done) :]:
        part = slice(begin, append["rows"])
        table = pa.table(
            {
                "key": pa.array(manifest.keys[part].tolist(), pa.large_string()),
                "label": pa.array(manifest.labels[part], pa.int32()),
                "split": pa.array(manifest.splits[part], pa.uint8()),
                "digest": pa.array(
                    [digest.tobytes() for digest in manifest.digests[part]],
                    pa.binary(DIGEST_BYTES),
                ),
            }
        )
        write_durably(folder / append["part"], _parquet(table))
        begin = append["rows"]
    write_durably(workspace / "data" / LABEL_SPACE, _json(space.to_dict()))
    write_durably(workspace / "data" / QUARANTINE, quarantine_csv(problems))
    if stamps is not None:
        write_durably(folder / STAMPS, _parquet(_stamp_table(stamps)))
    index = {
        "version": MANIFEST_VERSION,
        "appends": appends,
        "retired": np.flatnonzero(manifest.retired).tolist(),
        "num_classes": len(space),
        "classes_digest": _classes_digest(space.classes),
    }
    write_durably(folder / INDEX, _json(index | {"digest": canonical_digest(index)}))


def manifest_folder(workspace: Path) -> Path:
    """Return where the manifest of a workspace lies."""
    return inside(workspace, workspace / "data" / "manifest")


def _load_index(folder: Path) -> dict[str, Any]:
    path = folder / INDEX
    try:
        index = json.loads(read_whole(path))
        version = index["version"]
        digest = canonical_digest({key: index[key] for key in index if key != "digest"})
    except FileNotFoundError:
        raise ManifestError(
            f"{path}: no manifest yet; `concentrate run CONFIG` builds it"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ManifestError(f"{path} cannot be read: {error}; {REBUILD}") from error
    if version != MANIFEST_VERSION:
        raise ManifestError(
            f"{path}: version must be {MANIFEST_VERSION}, got {version!r:.80}; use the release "
            "that wrote it, or a newer one"
        )
    if index.pop("digest", None) != digest:
        raise ManifestError(f"{path}: the file was altered (its digest disagrees); {REBUILD}")
    problem = index_problem(index)
    if problem is not None:
        raise ManifestError(f"{path}: {problem}; {REBUILD}")
    return dict(index)


def _load_part(path: Path, rows: int, columns: Sequence[str] = PART.names) -> pa.Table:
    wanted = pa.schema([PART.field(name) for name in columns])
    try:
        with pq.ParquetFile(pa.BufferReader(read_whole(path))) as file:
            found = file.metadata.num_rows  # before a row is decoded
            if found != rows:
                raise ManifestError(f"{path} must hold {rows} rows, got {found}; {REBUILD}")
            table = file.read(columns=list(columns))
        if table.schema.remove_metadata() != wanted or any(c.null_count for c in table.columns):
            raise ManifestError(f"{path} must hold columns {wanted}, got {table.schema}; {REBUILD}")
    except (OSError, pa.ArrowException) as error:
        raise ManifestError(f"{path} cannot be read: {error}; {REBUILD}") from error
    return table


def _table(path: Path) -> pa.Table:
    return pq.ParquetFile(pa.BufferReader(read_whole(path))).read()


def _classes_digest(classes: tuple[str, ...]) -> str:
    return canonical_digest(list(classes))


def _stamp_table(stamps: Stamps) -> pa.Table:
    return pa.table(
        {
            "key": pa.array(list(stamps), pa.large_string()),
            "size": pa.array([stamp[0] for stamp, _ in stamps.values()], pa.int64()),
            "time": pa.array([stamp[1] for stamp, _ in stamps.values()], pa.int64()),
            "digest": pa.array([digest for _, digest in stamps.values()], pa.binary(DIGEST_BYTES)),
        }
    )


def _parquet(table: pa.Table) -> bytes:
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd")
    return bytes(buffer.getvalue())


def _json(value: Any) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode()
