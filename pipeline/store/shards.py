"""One shard at a time: the commit record, the durable write, the checked read.

In: `ShardFiles`, which owns the Zarr arrays of a store. Left out: rows across shards
(row_reader.py), what the numbers mean (storage_schemas).
"""

from __future__ import annotations

import contextlib
import gzip
import os
import zlib
from collections.abc import Callable
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from pipeline.durable_files import not_written
from pipeline.locations import is_local, read_whole, remove, storage_errors
from pipeline.store.commit import shard_crc, sync
from pipeline.store.documents import read_document
from pipeline.store.labelled_rows import row_problems
from pipeline.store.layout import (
    COMMITS,
    array_place,
    array_shape,
    shard_file,
    shard_files,
    stored_array,
)
from pipeline.store.lock import share_reader_lock
from pipeline.store.records import holds_plain_records, read_records, written_places
from pipeline.store.shard_bytes import decode_shard_bytes, is_plain
from pipeline.store.shard_index import ShardForm, largest_bytes, shard_form, shard_problem
from pipeline.workspace import inside
from storage_schemas.errors import CorruptLabelError, MissingLabelError, StoreError
from storage_schemas.stored_array import StoreSchema

Array = npt.NDArray[Any]
DECODING_ERRORS = (
    *(ValueError, RuntimeError, KeyError, IndexError, TypeError),
    *(ArithmeticError, AttributeError, AssertionError, EOFError, MemoryError),
    *(gzip.BadGzipFile, zlib.error),
)


class ShardFiles:
    """The arrays of one store, opened when first used and again after a fork.

    From then on this process shares the reader lock of the store, as long as the object lives.

    Args:
        path: Directory of the store.
        schema: What its attributes say.
    """

    def __init__(self, path: Path, schema: StoreSchema) -> None:
        self.path = path
        self.schema = schema
        self._arrays: dict[str, zarr.Array[Any]] = {}
        self._forms: dict[str, ShardForm] = {}
        self._plain_records: bool | None = None
        self._pid = os.getpid()
        self._reading: Callable[[], object] | None = None

    def _array(self, name: str) -> zarr.Array[Any]:
        if self._pid != os.getpid():
            self._arrays, self._pid = {}, os.getpid()
            if self._reading is not None:
                self._reading()  # this process's copy of what the parent has locked
                self._reading = None
        if name not in self._arrays:
            if self._reading is None:
                self._reading = share_reader_lock(self, self.path)
            try:
                place = array_place(self.path / name)
                self._arrays[name] = zarr.open_array(place, mode="r+", zarr_format=3)
            except storage_errors() as error:
                raise self._unreadable(f"array {name}", error) from error
            except DECODING_ERRORS as error:
                raise CorruptLabelError(
                    f"{self.path}: array {name} does not open: {error}; run `concentrate label`"
                ) from error
        return self._arrays[name]

    def structure_problem(
        self, name: str, view: int, shard: int, *, heads: bool = True
    ) -> str | None:
        """Return what is wrong with a shard file as a file (see `shard_index.shard_problem`)."""
        file = shard_files(self.schema, self.path, view, shard)[name]
        return shard_problem(file, self._form(name), heads=heads)

    def _form(self, name: str) -> ShardForm:
        if name not in self._forms:
            document = read_document(self.path, name)
            itemsize = stored_array(self.schema, name).dtype.itemsize
            self._forms[name] = shard_form(document, itemsize)
        return self._forms[name]

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
        """Return all commit records, (views, shards, fields); zero where one cannot be read."""
        table = np.zeros(array_shape(self.schema, COMMITS), np.uint32)
        try:
            plain = self._has_plain_records()
            places = written_places(self.path, self.schema, [COMMITS])
            fields = table.shape[2]
            records = (
                read_records(self.path, places, fields) if plain else zip(places, repeat(None))
            )
            for place, record in records:
                with contextlib.suppress(*DECODING_ERRORS):
                    table[place] = record or self._array(COMMITS)[place]
        except storage_errors() as error:  # not the same as damaged: it must not be labelled again
            raise self._unreadable("array commits", error) from error
        return table

    def commit(self, view: int, shard: int) -> tuple[int, ...]:
        """Return one commit record: written rows, and the crc32c of each array.

        Raises:
            CorruptLabelError: If the record cannot be read.
        """
        self._check_place(view, shard)
        try:
            if self._has_plain_records():
                fields = 1 + len(self.schema.stored_arrays)
                found = dict(read_records(self.path, [(view, shard)], fields))
                record = found.get((view, shard), (0,) * fields)
                if record is not None:
                    return record
            return tuple(np.asarray(self._array(COMMITS)[view, shard]).tolist())
        except storage_errors() as error:
            raise self._unreadable(f"array commits, view {view}, shard {shard}", error) from error
        except DECODING_ERRORS as error:
            raise self._corrupt(COMMITS, view, shard, str(error)) from error

    def _has_plain_records(self) -> bool:
        array = self._array(COMMITS)  # opened in any case: that shares the reader lock
        if self._plain_records is None:
            self._plain_records = holds_plain_records(array.metadata.to_dict())
        return self._plain_records

    def write(self, view: int, shard: int, *values: Array) -> tuple[int, ...]:
        """Write and commit one whole shard: the last array first, so that the first comes last.

        Args:
            view: View of the shard.
            shard: Index along the rows.
            values: Of each array of the schema, in its order (see `SoftLabelStore.write_shard`).
        """
        self._check_place(view, shard)
        written = self._checked_rows(shard, values)
        names = [array.name for array in self.schema.stored_arrays]
        data = dict(zip(names, values, strict=True))
        crcs = (shard_crc(self.schema, name, view, shard, data[name]) for name in names)
        record = (written, *crcs)
        files = {
            name: inside(self.path, file)
            for name, file in shard_files(self.schema, self.path, view, shard).items()
        }
        try:
            self.discard(view, shard)
            for name in reversed(names):
                # zarr reads the last, cut shard before it writes it: a torn one must not be there.
                remove(files[name])
            for name in reversed(names):
                self._write_array(name, view, shard, data[name])
            sync([files[name] for name in reversed(names)], self.path)
            self._array(COMMITS)[view, shard] = np.array(record, np.uint32)
            sync([files[COMMITS]], self.path)
        except storage_errors() as error:
            what = f"{self.path}: view {view}, shard {shard}"
            needed = sum(one.nbytes for one in values)
            failed = not_written(what, self.path, error, needed)
            # Half a shard is of no use, and takes room.
            with contextlib.suppress(*storage_errors()):
                for name in names:
                    remove(files[name])
            raise failed from error
        return record

    def discard(self, view: int, shard: int) -> None:
        """Remove a commit record, durably: the shard counts as not done."""
        self._check_place(view, shard)
        record = inside(self.path, shard_file(self.path, COMMITS, view, shard))
        if not is_local(record) or record.exists():
            remove(record)
            sync([record], self.path)

    def _write_array(self, name: str, view: int, shard: int, values: Array) -> None:
        # The arrays may be longer than the schema says, after an interrupted growth.
        array = self._array(name)
        first = shard * self.schema.shard_rows
        size = min(self.schema.shard_rows, array.shape[1] - first)
        padded = np.full((size, *values.shape[1:]), array.fill_value, values.dtype)
        padded[: min(size, len(values))] = values[:size]
        array[view, first : first + size] = padded

    def _checked_rows(self, shard: int, data: tuple[Array, ...]) -> int:
        schema, rows = self.schema, len(self.span(shard))
        for array, values in zip(schema.stored_arrays, data, strict=True):
            shapes = ((schema.shard_rows, *array.cell), (rows, *array.cell))
            if values.shape not in shapes or values.dtype != array.dtype:
                raise ValueError(
                    f"{array.name} must be {array.dtype} of shape {shapes[0]} or {shapes[1]}, got "
                    f"{values.dtype} of shape {values.shape}"
                )
        written, problems = row_problems(schema, data)
        if written[rows:].any():
            problems.append(f"rows past the end of the store ({schema.num_rows}) hold labels")
        if not written.any():
            problems.append("there is no label to write")
        if problems:
            raise ValueError(f"shard {shard}: {'; '.join(problems)}")
        return int(written.sum())

    def _unreadable(self, what: str, error: Exception) -> StoreError:
        return StoreError(f"{self.path}: {what} cannot be read: {error}; check the disk")

    def _corrupt(self, name: str, view: int, shard: int, why: str) -> CorruptLabelError:
        return CorruptLabelError(
            f"{self.path}: array {name}, view {view}, shard {shard} is damaged: {why}; "
            "run `concentrate verify --depth full`, which takes it out of use, and then "
            "`concentrate label`, which writes it again"
        )

    def read(self, view: int, shard: int) -> tuple[Array, ...]:
        """Read one shard, array by array, and check it (see `SoftLabelStore.read_shard`)."""
        _, *crcs = self._committed(view, shard)
        arrays = self.schema.stored_arrays
        return tuple(
            self._read_whole(array.name, view, shard, crc)
            for array, crc in zip(arrays, crcs, strict=True)
        )

    def read_ids(self, view: int, shard: int, crc: int) -> Array:
        """Read the ids of one shard and check them (see `SoftLabelStore.read_shard_ids`)."""
        self._check_place(view, shard)
        return self._read_whole("ids", view, shard, crc)

    def _decoded_bytes(self, name: str, view: int, shard: int) -> Array | None:
        """Return a whole shard straight from its bytes, or None where zarr must read it."""
        if not is_plain(self._array(name).metadata.to_dict()):
            return None
        schema, form = self.schema, self._form(name)
        try:
            file = shard_files(schema, self.path, view, shard)[name]
            content = read_whole(file, largest=largest_bytes(form))
        except ValueError:
            return None
        except storage_errors():
            return None
        array = stored_array(schema, name)
        return decode_shard_bytes(
            content,
            (schema.shard_rows, *array.cell),
            schema.chunk_rows,
            array.dtype,
            array.fill,
            codec=form.codecs[0],
        )

    def read_gaps(self, view: int, shard: int, rows: range) -> Array:
        """Read some rows of `gaps`, (rows, columns), which only their chunks' own crc32c guards.

        Args:
            view: View of the shard.
            shard: Index along the rows.
            rows: Counted from the first row of the shard; whole chunks are read anyway.

        Raises:
            CorruptLabelError: If they do not decode.
        """
        first = self.span(shard).start
        return self._decoded("gaps", view, shard, range(first + rows.start, first + rows.stop))

    def _committed(self, view: int, shard: int) -> tuple[int, ...]:
        record = self.commit(view, shard)
        if record[0] == 0:
            raise MissingLabelError(
                f"{self.path}: view {view}, shard {shard} has not been labelled; run "
                f"`concentrate label --teacher {self.schema.teacher}`"
            )
        return record

    def _read_whole(self, name: str, view: int, shard: int, crc: int) -> Array:
        found = self._decoded_bytes(name, view, shard)
        if found is not None and shard_crc(self.schema, name, view, shard, found) == crc:
            return found[: len(self.span(shard))]
        values = self._decoded(name, view, shard, self.span(shard))
        got = shard_crc(self.schema, name, view, shard, values)
        if got != crc:
            raise self._corrupt(
                name, view, shard, f"crc32c must be {crc:08x} by its record, got {got:08x}"
            )
        return values

    def _decoded(self, name: str, view: int, shard: int, rows: range) -> Array:
        try:
            problem = self.structure_problem(name, view, shard)
            if problem is not None:
                raise self._corrupt(name, view, shard, problem)
            return np.asarray(self._array(name)[view, rows.start : rows.stop])
        except storage_errors() as error:
            where = f"array {name}, view {view}, shard {shard}"
            raise self._unreadable(where, error) from error
        except DECODING_ERRORS as error:
            raise self._corrupt(name, view, shard, str(error)) from error
