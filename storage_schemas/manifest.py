"""The sample manifest: which sample each row is, and a chain digest that proves it only grew.

In: the rows as parallel arrays, the chain over the appends, appending, retiring, and the checks.
Left out: files and sources of images (pipeline.data).

A row id is a position. It is given once: a removed or changed sample is retired and its row
stays. Each append has a chain digest over the one before it and its own rows, so a store that
knows the chain after n rows can tell whether a manifest still begins with those n rows.
Retirement is not in the chain, because it changes no row's meaning.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from storage_schemas.errors import ManifestError

MANIFEST_VERSION: Final = 1
TRAIN: Final = 0
TEST: Final = 1
UNLABELLED: Final = -1
DIGEST_BYTES: Final = 16
BLOCK_ROWS: Final = 1 << 16  # of keys joined at a time: they may be millions


def chain_digest(
    previous: str,
    keys: npt.NDArray[np.object_],
    labels: npt.NDArray[np.int32],
    splits: npt.NDArray[np.uint8],
    digests: npt.NDArray[np.uint8],
) -> str:
    """Return the sha256 hex digest that links one append's rows to the chain before it.

    Args:
        previous: The chain digest before this append; "" before the first.
        keys: (n,) str without NUL.
        labels: (n,) int32 global class ids, -1 where unlabelled.
        splits: (n,) uint8.
        digests: (n, 16) uint8 content digests.
    """
    link = hashlib.sha256()
    link.update(f"manifest {MANIFEST_VERSION}\0{previous}\0{len(keys)}\0".encode())
    for start in range(0, max(len(keys), 1), BLOCK_ROWS):
        link.update("\0".join(keys[start : start + BLOCK_ROWS]).encode())
        link.update(b"\0")
    link.update(labels.astype("<i4").tobytes())
    link.update(splits.astype(np.uint8).tobytes())
    link.update(np.ascontiguousarray(digests, np.uint8).tobytes())
    return link.hexdigest()


@dataclass(frozen=True, kw_only=True, eq=False)
class Manifest:
    """Every sample ever seen, one row each.

    Attributes:
        keys: (N,) object array of str, what the source calls the sample.
        labels: (N,) int32 global class id, -1 where unlabelled.
        splits: (N,) uint8, `TRAIN` or `TEST`.
        digests: (N, 16) uint8, blake2b-128 of the content.
        appends: (N,) int32, which append brought the row.
        retired: (N,) bool, True where the sample is gone or has changed since.
        chains: Chain digest after each append.
        append_ends: Number of rows after each append.

    Raises:
        ManifestError: If the arrays do not fit together.
    """

    keys: npt.NDArray[np.object_]
    labels: npt.NDArray[np.int32]
    splits: npt.NDArray[np.uint8]
    digests: npt.NDArray[np.uint8]
    appends: npt.NDArray[np.int32]
    retired: npt.NDArray[np.bool_]
    chains: tuple[str, ...]
    append_ends: tuple[int, ...]

    def __post_init__(self) -> None:
        rows = len(self.keys)
        expected: dict[str, tuple[int, ...]] = {
            "labels": (rows,),
            "splits": (rows,),
            "digests": (rows, DIGEST_BYTES),
            "appends": (rows,),
            "retired": (rows,),
        }
        for name, shape in expected.items():
            found = getattr(self, name).shape
            if found != shape:
                raise ManifestError(f"manifest {name} must be {shape}, got {found}")
        ends = (0, *self.append_ends)
        if (
            len(self.chains) != len(self.append_ends)
            or ends[-1] != rows
            or list(ends) != sorted(ends)
        ):
            raise ManifestError(
                f"manifest append_ends must rise to {rows} with one chain digest each, got "
                f"{self.append_ends} and {len(self.chains)} digests"
            )

    @classmethod
    def empty(cls) -> Manifest:
        """Return the manifest before its first append."""
        return cls(
            keys=np.empty(0, np.object_),
            labels=np.empty(0, np.int32),
            splits=np.empty(0, np.uint8),
            digests=np.empty((0, DIGEST_BYTES), np.uint8),
            appends=np.empty(0, np.int32),
            retired=np.empty(0, np.bool_),
            chains=(),
            append_ends=(),
        )

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def digest(self) -> str:
        """The last chain digest: names all rows, in order; "" when there are none."""
        return self.chains[-1] if self.chains else ""

    @functools.cached_property
    def alive_by_key(self) -> dict[str, int]:
        """Key -> row of every sample that is not retired."""
        alive = np.flatnonzero(~self.retired)
        return dict(zip(self.keys[alive].tolist(), alive.tolist(), strict=True))

    def rows(
        self, split: int | None = None, support: npt.NDArray[Any] | None = None
    ) -> npt.NDArray[np.int64]:
        """Return the ascending rows that are not retired.

        Args:
            split: `TRAIN` or `TEST`; None for both.
            support: Global class ids; keeps only rows labelled with one of them.
        """
        keep = ~self.retired
        if split is not None:
            keep = keep & (self.splits == split)
        if support is not None:
            keep = keep & np.isin(self.labels, support) & (self.labels != UNLABELLED)
        return np.flatnonzero(keep).astype(np.int64)

    def rows_digest(self, rows: npt.NDArray[np.int64]) -> str:
        """Return the sha256 hex digest of some rows: their numbers, labels and contents."""
        digest = hashlib.sha256()
        for array, kind in ((rows, "<i8"), (self.labels[rows], "<i4"), (self.digests[rows], "u1")):
            digest.update(array.astype(kind).tobytes())
        return digest.hexdigest()

    def has_prefix(self, chain: str, rows: int) -> bool:
        """Tell whether this manifest begins with the `rows` rows that `chain` names."""
        if rows == 0:
            return chain == ""
        return (chain, rows) in zip(self.chains, self.append_ends, strict=True)

    def appended(
        self,
        *,
        keys: Iterable[str],
        labels: npt.NDArray[np.int32],
        splits: npt.NDArray[np.uint8],
        digests: npt.NDArray[np.uint8],
    ) -> Manifest:
        """Return the manifest with one more append; itself when there is nothing to add.

        Raises:
            ManifestError: If a key is empty, holds NUL, or appears twice among the rows that
                are not retired.
        """
        new = np.array([*keys, None], np.object_)[:-1]
        if not len(new):
            return self
        seen = set(self.alive_by_key)
        for key in new:
            if not key or "\0" in key or key in seen:
                raise ManifestError(
                    f"sample keys must be non-empty, without NUL, and unique, got {key!r}"
                    f"{' twice' if key in seen else ''}; give each sample its own key"
                )
            seen.add(key)
        count = len(self.chains)
        return Manifest(
            keys=np.concatenate([self.keys, new]),
            labels=np.concatenate([self.labels, labels.astype(np.int32)]),
            splits=np.concatenate([self.splits, splits.astype(np.uint8)]),
            digests=np.concatenate([self.digests, digests.astype(np.uint8)]),
            appends=np.concatenate([self.appends, np.full(len(new), count, np.int32)]),
            retired=np.concatenate([self.retired, np.zeros(len(new), np.bool_)]),
            chains=(*self.chains, chain_digest(self.digest, new, labels, splits, digests)),
            append_ends=(*self.append_ends, len(self) + len(new)),
        )

    def with_retired(self, rows: npt.ArrayLike) -> Manifest:
        """Return the manifest in which exactly these rows are retired."""
        retired = np.zeros(len(self), np.bool_)
        retired[np.asarray(rows, np.int64)] = True
        return replace(self, retired=retired)

    def chain_problem(self) -> str | None:
        """Recompute the chain; return what is wrong with the first append that disagrees."""
        previous = ""
        begin = 0
        for position, (chain, end) in enumerate(zip(self.chains, self.append_ends, strict=True)):
            part = slice(begin, end)
            found = chain_digest(
                previous, self.keys[part], self.labels[part], self.splits[part], self.digests[part]
            )
            if found != chain:
                return (
                    f"append {position} (rows {begin} to {end - 1}): chain digest must be "
                    f"{chain}, got {found}"
                )
            previous, begin = chain, end
        return None
