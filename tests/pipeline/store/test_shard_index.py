"""The structure of shard files: truncation is found by its index, bombs before they go off."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import zarr
from numcodecs import blosc, zstd
from zarr.codecs import GzipCodec

from pipeline.store import SoftLabelStore, open_soft_labels, verify_store
from pipeline.store.documents import array_digest, document_file, read_document, replace_document
from pipeline.store.layout import shard_file
from pipeline.store.shard_index import ShardForm, shard_problem
from storage_schemas.errors import CorruptLabelError, SchemaMismatchError
from storage_schemas.label_space import canonical_digest

GAPS = ShardForm(chunks=2, chunk_bytes=160, codecs=("zstd", "crc32c"))
HUGE = 100 << 30


def crc(data: bytes) -> bytes:
    return int(google_crc32c.value(data)).to_bytes(4, "little")


def shard_of(*chunks: bytes, entries: list[tuple[int, int]] | None = None) -> bytes:
    """Return a shard file as a hostile writer would sign it."""
    places, at = [], 0
    for chunk in chunks:
        places.append((at, len(chunk)))
        at += len(chunk)
    index = np.array(places if entries is None else entries, "<u8").tobytes()
    return b"".join(chunks) + index + crc(index)


def signed(data: bytes) -> bytes:
    return data + crc(data)


def zstd_frame(declared: int | None, blocks: int) -> bytes:
    """Return a frame of zeros: a few bytes for each 128 KiB."""
    head = bytes([0x00, 0x58]) if declared is None else b"\xe0" + declared.to_bytes(8, "little")
    body = b"".join(
        (int(last) | 1 << 1 | 131_072 << 3).to_bytes(3, "little") + b"\0"
        for last in [*[False] * (blocks - 1), True]
    )
    return b"\x28\xb5\x2f\xfd" + head + body


SOUND = signed(zstd.compress(bytes(range(160)), 1))
BLOSC_BOMB = bytes([2, 1, 0x21, 2]) + b"".join(
    n.to_bytes(4, "little") for n in (2**31 - 64, 100, 40)
)


def test_every_truncation_is_found(full_store: SoftLabelStore) -> None:
    """A committed shard cut at any place fails the quick depth, which reads no data."""
    for name in ("ids", "gaps"):
        file = shard_file(full_store.path, name, 1, 1)
        sound = file.read_bytes()
        for length in [0, 1, 4, *range(5, len(sound), 97), len(sound) - 1]:
            file.write_bytes(sound[:length])
            (problem,) = verify_store(full_store, "quick")
            assert f"{name}, view 1, shard 1" in problem
        file.write_bytes(sound)
    assert verify_store(full_store, "quick") == []


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "cut short"),
        (bytes(40), "checksum"),
        (shard_of(SOUND, SOUND, entries=[(0, 9000), (0, 9)]), "names bytes 0 to 9000"),
        (shard_of(SOUND, SOUND, entries=[(2**63, 2**63), (0, 9)]), "names bytes"),
        (shard_of(SOUND, signed(zstd.compress(bytes(161), 1))), "must decode to 160 bytes, got"),
        (shard_of(SOUND, signed(zstd_frame(HUGE, 1))), "got more"),
        (shard_of(SOUND, signed(zstd_frame(None, 9))), "got more"),
        (shard_of(SOUND, b""), "got 0"),
        (shard_of(SOUND, b"no frame at all"), "got something else"),
    ],
)
def test_hostile_shards_are_refused(tmp_path: Path, content: bytes, expected: str) -> None:
    """Lying indices and frames are named, even when their checksums fit."""
    file = tmp_path / "0"
    file.write_bytes(content)
    problem = shard_problem(file, GAPS)
    assert problem is not None
    assert expected in problem


def test_sound_shards_pass_whatever_compressed_them(tmp_path: Path) -> None:
    """Frames of every core codec, and of zstd without a declared size, are let through."""
    data = bytes(range(160))
    file = tmp_path / "0"
    undeclared = zstd_frame(None, 1)
    for codecs, chunk in (
        ((), data),
        (("crc32c",), signed(data)),
        (("gzip",), gzip.compress(data)),
        (("blosc", "crc32c"), signed(blosc.compress(data, b"zstd", 5, 2))),
        (("zstd",), zstd.compress(data, 1)),
        (("crc32c", "zstd"), zstd.compress(signed(data), 1)),
    ):
        file.write_bytes(shard_of(chunk, chunk))
        assert shard_problem(file, ShardForm(chunks=2, chunk_bytes=160, codecs=codecs)) is None
    file.write_bytes(shard_of(undeclared))
    assert shard_problem(file, ShardForm(chunks=1, chunk_bytes=131_072, codecs=("zstd",))) is None


def test_blosc_and_gzip_bombs_are_refused(tmp_path: Path) -> None:
    """A header that claims 2 GB, and a gzip stream of zeros, are refused."""
    file = tmp_path / "0"
    zeros = gzip.compress(bytes(1 << 20))
    for codec, chunk in (
        ("blosc", BLOSC_BOMB),
        ("gzip", zeros),
        ("gzip", gzip.compress(bytes(160)) + zeros),
    ):
        file.write_bytes(shard_of(chunk))
        problem = shard_problem(file, ShardForm(chunks=1, chunk_bytes=160, codecs=(codec,)))
        assert problem == "chunk at byte 0: must decode to 160 bytes, got more"


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
def test_a_bomb_takes_no_memory(tmp_path: Path) -> None:
    """A frame of 32 GB that says nothing of its size is refused within 300 MB."""
    (tmp_path / "0").write_bytes(shard_of(zstd_frame(None, 250_000)))
    script = (
        "import re, sys; from pathlib import Path\n"
        "from pipeline.store.shard_index import ShardForm, shard_problem\n"
        "form = ShardForm(chunks=1, chunk_bytes=1 << 19, codecs=('zstd',))\n"
        "print(shard_problem(Path(sys.argv[1]), form))\n"
        "print(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "0")],
        capture_output=True, text=True, check=True, timeout=60, cwd=Path(__file__).parents[3],
    )  # fmt: skip
    message, kilobytes = done.stdout.splitlines()
    assert message == "chunk at byte 0: must decode to 524288 bytes, got more"
    assert int(kilobytes) < 300_000


def _rewrite(store: SoftLabelStore, name: str, change: Any) -> None:
    """Change an array's metadata and sign it, as its writer would."""
    document = read_document(store.path, name)
    change(document)
    replace_document(document_file(store.path, name), document)
    group = read_document(store.path)
    group["attributes"]["arrays"][name] = array_digest(document)
    said = {key: group["attributes"][key] for key in ("soft_labels", "arrays")}
    group["attributes"]["digest"] = canonical_digest(said)
    replace_document(document_file(store.path), group)


def test_a_store_of_another_core_codec_is_read(full_store: SoftLabelStore) -> None:
    """Readers accept any core codec: gaps stored with gzip are read and verified."""
    gaps = [[full_store.read_shard(view, shard)[1] for shard in range(3)] for view in range(2)]

    def use_gzip(document: dict[str, Any]) -> None:
        inner = document["codecs"][0]["configuration"]["codecs"]
        inner[1] = GzipCodec(level=1).to_dict()

    _rewrite(full_store, "gaps", use_gzip)
    shutil.rmtree(full_store.path / "gaps" / "c")
    array = zarr.open_array(full_store.path / "gaps", mode="r+")
    for view in range(2):
        array[view] = np.concatenate(gaps[view])
    found = open_soft_labels(full_store.path)
    assert verify_store(found, "full") == []
    assert np.array_equal(found.read_shard(1, 2)[1], gaps[1][2])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda d: d["codecs"][0]["configuration"]["codecs"].append({"name": "gzip"}), "at most"),
        (
            lambda d: d["codecs"][0]["configuration"]["codecs"].append(
                {"name": "numcodecs.pickle", "configuration": {}}
            ),
            "numcodecs.pickle",
        ),
        (lambda d: d["codecs"][0]["configuration"].update(index_location="start"), "'end'"),
        (lambda d: d["codecs"][0]["configuration"].update(index_codecs=[]), "index_codecs"),
        (lambda d: d["codecs"][0]["configuration"].update(chunk_shape=[1, 1, 1]), "chunks must"),
        (lambda d: d.update(codecs=[{"name": "bytes"}]), "sharding_indexed alone"),
        (lambda d: d.update(chunk_grid=5), "shards must be"),
        (lambda d: d.update(chunk_key_encoding={"name": "v2"}), "chunk_key_encoding"),
        (lambda d: d.update(shape=[2, 2**70, 4]), "shape must be"),
    ],
)
def test_metadata_that_the_format_does_not_allow_are_refused(
    full_store: SoftLabelStore, change: Any, expected: str
) -> None:
    """Codecs outside the core, other layouts and impossible shapes are refused, though signed."""
    _rewrite(full_store, "ids", change)
    with pytest.raises(SchemaMismatchError, match=expected):
        open_soft_labels(full_store.path)
    assert len(verify_store(full_store)) == 1


def test_a_shard_must_be_a_regular_file(full_store: SoftLabelStore) -> None:
    """A pipe in place of a shard is named, and nobody waits for it."""
    file = shard_file(full_store.path, "ids", 0, 1)
    file.unlink()
    os.mkfifo(file)
    assert verify_store(full_store, "full") == [
        f"{full_store.path}: array ids, view 0, shard 1: committed, but is not a regular file"
    ]
    with pytest.raises(CorruptLabelError, match="not a regular file"):
        full_store.read_shard(0, 1)
