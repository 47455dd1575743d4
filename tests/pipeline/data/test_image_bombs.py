"""Images made to fill memory or time: each ends in quarantine or as a plain image, cheaply."""

from __future__ import annotations

import csv
import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from PIL import Image

from pipeline.data.manifest import quarantine_path

ROOT = Path(__file__).parents[3]
INFLATED = 256 << 20

SCRIPT = """
import re, sys, time, warnings
from pathlib import Path
warnings.simplefilter("ignore")
from pipeline.config import load_project
from pipeline.data import update_manifest
project = load_project(Path(sys.argv[1]))
begin = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]
update = update_manifest(project)
end = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]
print(len(update.manifest.rows()), update.quarantined, int(end) - int(begin))
"""


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *, extra: bytes = b"", pixels: bytes | None = None) -> bytes:
    """Return a one-bit PNG with chunks of ours before its pixels."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    data = zlib.compress(bytes(64)) if pixels is None else pixels
    parts = chunk(b"IHDR", header) + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def frames(file_format: str, count: int) -> bytes:
    """Return an animation of that many frames."""
    images = [Image.new("RGB", (64, 64), (i % 256, 0, 0)) for i in range(count)]
    buffer = io.BytesIO()
    images[0].save(buffer, file_format, save_all=True, append_images=images[1:])
    return buffer.getvalue()


def jpeg2000() -> bytearray:
    buffer = io.BytesIO()
    Image.new("RGB", (256, 256), (9, 9, 9)).save(buffer, "JPEG2000")
    return bytearray(buffer.getvalue())


@pytest.fixture(scope="module")
def bombs() -> dict[str, bytes]:
    """File name -> content, of files that must be refused."""
    squeezer = zlib.compressobj(1)
    zeros = b"".join(squeezer.compress(bytes(1 << 20)) for _ in range(INFLATED >> 20))
    zeros += squeezer.flush()
    small = zlib.compress(bytes(1 << 20), 9)
    huge = jpeg2000()
    for mark, skip in ((b"\xff\x51", 6), (b"ihdr", 4)):
        at = huge.index(mark) + skip
        huge[at : at + 8] = struct.pack(">II", 60_000, 60_000)
    lying = jpeg2000()
    at = lying.index(b"\xff\x51") + 6
    lying[at : at + 8] = struct.pack(">II", 60_000, 60_000)
    screen = b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + b"\0\0\0"
    return {
        "huge.png": png(60_000, 60_000),
        "text.png": png(8, 8, extra=chunk(b"zTXt", b"k\0\0" + zeros)),
        "profile.png": png(8, 8, extra=chunk(b"iCCP", b"k\0\0" + zeros)),
        "international.png": png(8, 8, extra=chunk(b"iTXt", b"k\0\1\0\0\0" + zeros)),
        "texts.png": png(8, 8, extra=chunk(b"zTXt", b"k\0\0" + small) * 99),
        "screen.gif": screen + b",\0\0\0\0\1\0\1\0\0\2\2D\1\0;",
        "huge.ppm": b"P6 60000 60000 255\n",
        "huge.jp2": bytes(huge),
        "lying.jp2": bytes(lying),
        "cut.jp2": bytes(jpeg2000()[:160]),
        "huge.bmp": b"BM" + bytes(16) + struct.pack("<ii", 60_000, 60_000) + bytes(60),
    }


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
def test_bombs_are_quarantined_within_bounds(tmp_path: Path, bombs: dict[str, bytes]) -> None:
    """A folder of bombs is listed within 400 MB and a minute, and its good images are used."""
    folder = tmp_path / "images" / "cat"
    folder.mkdir(parents=True)
    squeezer = zlib.compressobj(1)
    zeros = b"".join(squeezer.compress(bytes(1 << 20)) for _ in range(64)) + squeezer.flush()
    good = {
        "plain.png": png(8, 8),
        "endless.png": png(8, 8, pixels=zeros),
        "long.gif": frames("GIF", 400),
        "long.webp": frames("WEBP", 100),
        "long.tiff": frames("TIFF", 200),
    }
    for name, content in (bombs | good).items():
        (folder / name).write_bytes(content)
    project = tmp_path / "project.yaml"
    project.write_text(
        "workspace: work\n"
        "data: {source: image_folder, root: images}\n"
        "teachers: [{name: all, builder: 'torchvision:resnet18', classes: {vertical: all}}]\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(project)],
        capture_output=True, text=True, check=False, timeout=60, cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows, quarantined, kilobytes = map(int, done.stdout.split())
    assert (rows, quarantined) == (len(good), len(bombs))
    assert kilobytes < 400_000
    with quarantine_path(tmp_path / "work").open(newline="", encoding="utf-8") as file:
        listed = {row["path"]: row["reason"] for row in csv.DictReader(file)}
    assert set(listed) == {f"cat/{name}" for name in bombs}
    assert all(len(reason) > 20 for reason in listed.values())
