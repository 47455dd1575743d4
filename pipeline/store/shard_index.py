"""The structure of one shard file, known without decoding it.

In: the index at the end of a shard and the head of each chunk, checked against the file's size and
against what a chunk decodes to. Left out: the values (shards.py compares them with their record).

The index catches truncation, and a file put together from others, in one short read. The heads
bound the memory: a frame says, or is made to show, how much it decodes to, so a few bytes that
stand for a hundred gigabytes are refused before anything is allocated for them. The layout is
that of the `sharding_indexed` codec of the Zarr v3 specification.
"""

from __future__ import annotations

import io
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import google_crc32c
import numpy as np
import pyarrow as pa

from pipeline.locations import bucket_of, is_local, read_whole

_ENTRY_BYTES = 16  # offset and size, uint64 each
_CRC_BYTES = 4
_HEAD_BYTES = 18  # the longest header of a zstd frame
_EMPTY = 2**64 - 1
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


@dataclass(frozen=True, kw_only=True)
class ShardForm:
    """What every shard file of one array must look like.

    Attributes:
        chunks: Chunks of a shard.
        chunk_bytes: Size of a decoded chunk.
        codecs: Names of the codecs that a chunk's bytes went through, after `bytes`.
    """

    chunks: int
    chunk_bytes: int
    codecs: tuple[str, ...]


def shard_form(document: dict[str, Any], itemsize: int) -> ShardForm:
    """Return the form that an array's metadata gives; the metadata has been checked (layout.py)."""
    sharding = document["codecs"][0]["configuration"]
    shard = document["chunk_grid"]["configuration"]["chunk_shape"]
    chunk = sharding["chunk_shape"]
    names = [codec["name"] for codec in sharding["codecs"]]
    return ShardForm(
        chunks=shard[1] // chunk[1],
        chunk_bytes=math.prod(chunk[1:]) * itemsize,
        codecs=tuple(names[names.index("bytes") + 1 :]),
    )


def shard_problem(path: Path, form: ShardForm, *, heads: bool = True) -> str | None:
    """Return what is wrong with the structure of a shard file, or None.

    Args:
        path: The file. An object of a bucket is read once, whole, or its index alone.
        form: What it must look like.
        heads: Look at the head of each chunk too, which must be done before a chunk is decoded.

    Raises:
        OSError: If the file cannot be read (see `pipeline.locations.storage_errors`).
    """
    if not is_local(path):
        return _object_problem(path, form, heads)
    if not path.is_file():  # a pipe or a device could keep the reader for ever
        return "is not a regular file" if path.exists() else "the file is not there"
    size = path.stat().st_size
    problem = _size_problem(size, form)
    if problem is not None:
        return problem
    with path.open("rb") as file:
        file.seek(size - _index_bytes(form))
        return _problem(file.read(), file if heads else None, size, form)


def _object_problem(path: Path, form: ShardForm, heads: bool) -> str | None:
    bucket, key = bucket_of(path), cast(Any, path).path
    try:
        size = int(bucket.info(key)["size"])
        problem = _size_problem(size, form)
        if problem is not None:
            return problem
        start = size - _index_bytes(form)
        if not heads:
            return _problem(bucket.cat_file(key, start=start), None, size, form)
        content = read_whole(path)
    except FileNotFoundError:
        return "the file is not there"
    return _problem(content[start:], io.BytesIO(content), size, form)


def _index_bytes(form: ShardForm) -> int:
    return form.chunks * _ENTRY_BYTES + _CRC_BYTES


def largest_bytes(form: ShardForm) -> int:
    """Return how large a shard file may be: no codec doubles what it compresses."""
    return 2 * form.chunks * (form.chunk_bytes + 1024) + _index_bytes(form)


def _size_problem(size: int, form: ShardForm) -> str | None:
    index = _index_bytes(form)
    if size < index:
        return f"is cut short: {size} bytes, and its index alone takes {index}"
    if size > largest_bytes(form):
        return f"must be at most {largest_bytes(form)} bytes, got {size}"
    return None


def _problem(tail: bytes, file: BinaryIO | None, size: int, form: ShardForm) -> str | None:
    """Return what is wrong with the index, and with the chunks that it names in the file."""
    index, crc = tail[:-_CRC_BYTES], int.from_bytes(tail[-_CRC_BYTES:], "little")
    if google_crc32c.value(index) != crc:
        return f"its index does not fit its checksum: cut short or overwritten ({size} bytes)"
    data_bytes = size - len(tail)
    for offset, length in np.frombuffer(index, "<u8").reshape(-1, 2).tolist():
        if offset == length == _EMPTY:
            continue
        if offset + length > data_bytes:
            return (
                f"its index names bytes {offset} to {offset + length}, and its data end at "
                f"{data_bytes}"
            )
        problem = None if file is None else _chunk_problem(file, offset, length, form)
        if problem is not None:
            return f"chunk at byte {offset}: {problem}"
    return None


def _chunk_problem(file: BinaryIO, offset: int, length: int, form: ShardForm) -> str | None:
    """Return why a chunk does not decode to its size, as far as its outermost layers tell."""
    expected = form.chunk_bytes
    compressor = None
    for name in form.codecs:
        if name != "crc32c":
            compressor = name
        elif compressor is None:
            expected += _CRC_BYTES
        else:
            length -= _CRC_BYTES
    length = max(length, 0)
    file.seek(offset)
    head = file.read(min(length, _HEAD_BYTES))
    found: int | None
    if compressor is None:
        found = length
    elif compressor == "blosc":
        found = int.from_bytes(head[4:8], "little") if len(head) >= 16 else None
    else:
        found = zstd_size(head) if compressor == "zstd" else None
        if found is None:  # not declared: decoded piece by piece, and no further than expected
            file.seek(offset)
            found = _streamed_size(compressor, file.read(length), expected)
    if found == expected:
        return None
    got = "something else" if found is None else "more" if found > expected else f"{found}"
    return f"must decode to {expected} bytes, got {got}"


def zstd_size(head: bytes) -> int | None:
    """Return the content size that the header of a zstd frame declares (RFC 8878, 3.1.1.1)."""
    if len(head) < 6 or head[:4] != _ZSTD_MAGIC:
        return None
    descriptor = head[4]
    single_segment = bool(descriptor & 0x20)
    size_bytes = (1 if single_segment else 0, 2, 4, 8)[descriptor >> 6]
    start = 5 + (0 if single_segment else 1) + (0, 1, 2, 4)[descriptor & 3]
    field = head[start : start + size_bytes]
    if not size_bytes or len(field) < size_bytes:
        return None
    return int.from_bytes(field, "little") + (256 if size_bytes == 2 else 0)


def _streamed_size(compressor: str, data: bytes, expected: int) -> int | None:
    """Return how much data decode to, at most `expected` + 1; None if they do not decode."""
    try:
        if compressor == "gzip":  # one member: a second one would be decoded as well
            member = zlib.decompressobj(zlib.MAX_WBITS | 16)
            found = len(member.decompress(data, expected + 1))
            return found if member.eof and not member.unused_data else expected + 1
        with pa.input_stream(io.BytesIO(data), compression="zstd") as stream:
            return len(stream.read(expected + 1))
    except (zlib.error, OSError, pa.ArrowException):
        return None
