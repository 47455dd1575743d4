"""One shard at a time: the commit record, the durable write, the checked read.

In: `ShardFiles`, which owns the three Zarr arrays of a store. Left out: rows across shards
(row_reader.py), what the numbers mean (storage_schemas).
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from pipeline.durable_files import not_written
from pipeline.store.commit import shard_crc, sync
from pipeline.store.layout import ARRAYS, array_shape, shard_file
from storage_schemas.errors import CorruptLabelError, MissingLabelError, StoreError
from storage_schemas.soft_labels import SoftLabelSchema

Array = npt.NDArray[Any]
DECODING_ERRORS = (ValueError, RuntimeError, KeyError, IndexError, TypeError)


class ShardFiles:
    """The arrays of one store, opened when first used and again after a fork.

    Args:
        path: Directory of the store.
        schema: What its attributes say.
    """

    def __init__(self, path: Path, schema: SoftLabelSchema) -> None:
        self.path = path
        self.schema = schema
        self._arrays: dict[str, zarr.Array[Any]] = {}
        self._pid = os.getpid()

    def _array(self, name: str) -> zarr.Array[Any]:
        if self._pid != os.getpid():
            self._arrays, self._pid = {}, os.getpid()
        if name not in self._arrays:
            try:
                self._arrays[name] = zarr.open_array(self.path / name, mode="r+", zarr_format=3)
            except OSError as error:
                raise self._unreadable(f"array {name}", error) from error
            except DECODING_ERRORS as error:
                raise CorruptLabelError(
                    f"{self.path}: array {name} does not open: {error}; run `concentrate label`"
                ) from error
        return self._arrays[name]

    def _check_place(self, view: int, shard: int) -> None:
        if not (0 <= view < self.schema.num_views and 0 <= shard < self.schema.num_shards):
            raise StoreError(
                f"{self.path}: view must be in 0..{self.schema.num_views - 1} and shard in "
                f"0..{self.schema.num_shards - 1}, got view {view}, shard {shard}"
            )

    def span(self, shard: int) -> range:
        """Return the rows of a shard, cut at the number of rows."""
        first = shard * self.schema.shard_rows
        return range(first, min(first + self.schema.shard_rows, self.schema.num_rows))

    def commits(self) -> npt.NDArray[np.uint32]:
        """Return all commit records, (views, shards, 3); zero where one cannot be read."""
        schema = self.schema
        try:
            return np.asarray(self._array("commits")[:, : schema.num_shards, :])
        except OSError as error:  # not the same as damaged: it must not be labelled again
            raise self._unreadable("array commits", error) from error
        except DECODING_ERRORS:
            table = np.zeros(array_shape(schema, "commits"), np.uint32)
            for view, shard in np.ndindex(schema.num_views, schema.num_shards):
                try:
                    table[view, shard] = self._array("commits")[view, shard]
                except DECODING_ERRORS:
                    continue
            return table

    def commit(self, view: int, shard: int) -> tuple[int, int, int]:
        """Return one commit record: labelled rows, crc32c of ids, crc32c of gaps.

        Raises:
            CorruptLabelError: If the record cannot be read.
        """
        self._check_place(view, shard)
        try:
            rows, ids_crc, gaps_crc = np.asarray(self._array("commits")[view, shard]).tolist()
        except OSError as error:
            raise self._unreadable(f"array commits, view {view}, shard {shard}", error) from error
        except DECODING_ERRORS as error:
            raise self._corrupt("commits", view, shard, str(error)) from error
        return rows, ids_crc, gaps_crc

    def write(self, view: int, shard: int, ids: Array, gaps: Array) -> tuple[int, int, int]:
        """Write and commit one whole shard (see `SoftLabelStore.write_shard`)."""
        self._check_place(view, shard)
        labelled = self._checked_labels(shard, ids, gaps)
        schema = self.schema
        record = (
            labelled,
            shard_crc(schema, "ids", view, shard, ids),
            shard_crc(schema, "gaps", view, shard, gaps),
        )
        files = {name: shard_file(self.path, name, view, shard) for name in ARRAYS}
        try:
            self.discard(view, shard)
            for name in ("gaps", "ids"):
                # zarr reads the last, cut shard before it writes it: a torn one must not be there.
                files[name].unlink(missing_ok=True)
            self._write_array("gaps", view, shard, gaps)
            self._write_array("ids", view, shard, ids)
            sync([files["gaps"], files["ids"]], self.path)
            self._array("commits")[view, shard] = np.array(record, np.uint32)
            sync([files["commits"]], self.path)
        except OSError as error:
            what = f"{self.path}: view {view}, shard {shard}"
            needed = ids.nbytes + gaps.nbytes
            failed = not_written(what, self.path, error, needed)
            with contextlib.suppress(OSError):  # half a shard is of no use, and takes room
                for name in ("ids", "gaps"):
                    files[name].unlink(missing_ok=True)
            raise failed from error
        return record

    def discard(self, view: int, shard: int) -> None:
        """Remove a commit record, durably: the shard counts as not done."""
        self._check_place(view, shard)
        record = shard_file(self.path, "commits", view, shard)
        if record.exists():
            record.unlink()
            sync([record], self.path)

    def _write_array(self, name: str, view: int, shard: int, values: Array) -> None:
        # The arrays may be longer than the schema says, after an interrupted growth.
        array = self._array(name)
        first = shard * self.schema.shard_rows
        size = min(self.schema.shard_rows, array.shape[1] - first)
        padded = np.full((size, values.shape[1]), array.fill_value, values.dtype)
        padded[: min(size, len(values))] = values[:size]
        array[view, first : first + size] = padded

    def _checked_labels(self, shard: int, ids: Array, gaps: Array) -> int:
        schema, rows = self.schema, len(self.span(shard))
        for name, values, columns, dtype in (
            ("ids", ids, schema.k, schema.ids_dtype),
            ("gaps", gaps, schema.columns, schema.gaps_dtype),
        ):
            shapes = ((schema.shard_rows, columns), (rows, columns))
            if values.shape not in shapes or values.dtype != dtype:
                raise ValueError(
                    f"{name} must be {dtype} of shape {shapes[0]} or {shapes[1]}, got "
                    f"{values.dtype} of shape {values.shape}"
                )
        labelled, problems = label_problems(schema, ids, gaps)
        if labelled[rows:].any():
            problems.append(f"rows past the end of the store ({schema.num_rows}) hold labels")
        if not labelled.any():
            problems.append("there is no label to write")
        if problems:
            raise ValueError(f"shard {shard}: {'; '.join(problems)}")
        return int(labelled.sum())

    def _unreadable(self, what: str, error: OSError) -> StoreError:
        return StoreError(f"{self.path}: {what} cannot be read: {error}; check the disk")

    def _corrupt(self, name: str, view: int, shard: int, why: str) -> CorruptLabelError:
        return CorruptLabelError(
            f"{self.path}: array {name}, view {view}, shard {shard} is damaged: {why}; "
            "run `concentrate verify --depth full`, which takes it out of use, and then "
            "`concentrate label`, which writes it again"
        )

    def read(self, view: int, shard: int) -> tuple[Array, Array]:
        """Read one shard and check it (see `SoftLabelStore.read_shard`)."""
        labelled, *expected = self.commit(view, shard)
        if labelled == 0:
            raise MissingLabelError(
                f"{self.path}: view {view}, shard {shard} has not been labelled; run "
                f"`concentrate label --teacher {self.schema.teacher}`"
            )
        span = self.span(shard)
        found = []
        for name, crc in zip(("ids", "gaps"), expected, strict=True):
            try:
                values = np.asarray(self._array(name)[view, span.start : span.stop])
            except OSError as error:
                where = f"array {name}, view {view}, shard {shard}"
                raise self._unreadable(where, error) from error
            except DECODING_ERRORS as error:
                raise self._corrupt(name, view, shard, str(error)) from error
            got = shard_crc(self.schema, name, view, shard, values)
            if got != crc:
                raise self._corrupt(
                    name, view, shard, f"crc32c must be {crc:08x} by its record, got {got:08x}"
                )
            found.append(values)
        return found[0], found[1]


def label_problems(
    schema: SoftLabelSchema, ids: Array, gaps: Array
) -> tuple[npt.NDArray[np.bool_], list[str]]:
    """Return which rows are labelled, (rows,) bool, and what is wrong with the values."""
    absent = ids == schema.ids_fill
    labelled = ~absent[:, 0]
    gaps_absent = gaps == schema.gaps_fill
    problems = []
    if (absent != absent[:, :1]).any() or (gaps_absent != absent[:, :1]).any():
        problems.append("a row is labelled in part")
    if (ids[labelled] >= schema.num_classes).any():
        problems.append(f"an id is not below {schema.num_classes}")
    ranked = np.sort(ids[labelled], axis=1)
    if (ranked[:, 1:] == ranked[:, :-1]).any():
        problems.append("an id appears twice in a row")
    return labelled, problems
