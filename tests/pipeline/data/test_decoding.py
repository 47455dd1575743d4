from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, TiffImagePlugin

from pipeline.data.decoding import decode_image, image_digest, to_gray_or_rgb
from storage_schemas.errors import UnreadableImageError

GRADIENT = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
COLOURS = np.stack([GRADIENT, GRADIENT[::-1], 255 - GRADIENT], axis=-1)


def encoded(image: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(decode_image(data, "picture"))


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF", "GIF", "PPM", "TGA"])
def test_gray_files_stay_gray(file_format: str) -> None:
    """A lossless gray file gives its very pixels in mode L."""
    image = decode_image(encoded(Image.fromarray(GRADIENT), file_format), "picture")
    assert (image.mode if file_format != "GIF" else "L") == "L"
    assert np.array_equal(np.asarray(image.convert("L")), GRADIENT)


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF", "PPM", "TGA"])
def test_rgb_files_keep_their_pixels(file_format: str) -> None:
    """A lossless colour file gives its very pixels in mode RGB."""
    assert np.array_equal(decoded(encoded(Image.fromarray(COLOURS), file_format)), COLOURS)


@pytest.mark.parametrize("file_format", ["JPEG", "WEBP"])
def test_lossy_files_decode(file_format: str) -> None:
    """JPEG and WebP decode near their source."""
    flat = Image.new("RGB", (32, 16), (200, 100, 50))
    found = decoded(encoded(flat, file_format, quality=95)).astype(int)
    assert found.shape == (16, 32, 3)
    assert np.abs(found - [200, 100, 50]).max() <= 6


def test_transparency_goes_over_white() -> None:
    """RGBA and LA are laid over white, whole and half transparent."""
    rgba = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    rgba.putpixel((1, 0), (10, 20, 30, 0))
    assert decoded(encoded(rgba)).tolist() == [[[255, 0, 0], [255, 255, 255]]]
    la = Image.new("LA", (2, 1), (0, 255))
    la.putpixel((1, 0), (0, 128))
    image = decode_image(encoded(la), "picture")
    assert image.mode == "L"
    assert np.asarray(image).tolist() == [[0, 127]]


def test_palette_files_decode_with_and_without_transparency() -> None:
    """Palette entries become colours; the transparent one becomes white."""
    palette = Image.new("P", (3, 1))
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    palette.putdata([0, 1, 2])
    assert decoded(encoded(palette)).tolist() == [[[255, 0, 0], [0, 255, 0], [0, 0, 255]]]
    seen = decoded(encoded(palette, transparency=1)).tolist()
    assert seen == [[[255, 0, 0], [255, 255, 255], [0, 0, 255]]]


def test_transparent_gray_level_goes_over_white() -> None:
    """A gray or RGB PNG with one transparent value keeps its mode."""
    image = decode_image(encoded(Image.fromarray(GRADIENT), transparency=50), "picture")
    assert image.mode == "L"
    expected = np.where(GRADIENT == 50, 255, GRADIENT)
    assert np.array_equal(np.asarray(image), expected)
    key = tuple(int(v) for v in COLOURS[0, 1])
    found = decoded(encoded(Image.fromarray(COLOURS), transparency=key))
    assert found[0, 1].tolist() == [255, 255, 255]
    assert np.array_equal(found[1:], COLOURS[1:])


def test_deep_gray_is_scaled_to_eight_bits() -> None:
    """16-bit values are divided by 257, so that black and white stay black and white."""
    deep = np.array([[0, 257, 32768, 65535]], np.uint16)
    assert decoded(encoded(Image.fromarray(deep))).tolist() == [[0, 1, 128, 255]]
    wide = Image.fromarray(np.array([[0, 65535, 10**6, -5]], np.int32))
    assert np.asarray(to_gray_or_rgb(wide)).tolist() == [[0, 255, 255, 0]]


def test_float_gray_is_read_by_its_range() -> None:
    """Floats in [0, 1] are scaled, larger ones clipped, NaN is black."""
    unit = Image.fromarray(np.array([[0.0, 0.5, 1.0, np.nan]], np.float32))
    assert decoded(encoded(unit, "TIFF")).tolist() == [[0, 128, 255, 0]]
    wide = Image.fromarray(np.array([[-3.0, 100.4, 300.0]], np.float32))
    assert decoded(encoded(wide, "TIFF")).tolist() == [[0, 100, 255]]


@pytest.mark.parametrize("mode", ["1", "CMYK", "YCbCr", "HSV", "LAB", "RGBX", "RGBa", "La"])
def test_every_other_mode_becomes_gray_or_rgb(mode: str) -> None:
    """White stays white in each mode that Pillow can hold."""
    white = {
        "1": 1,
        "CMYK": (0, 0, 0, 0),
        "YCbCr": (255, 128, 128),
        "HSV": (0, 0, 255),
        "LAB": (255, 128, 128),
        "RGBX": (255, 255, 255, 0),
        "RGBa": (255, 255, 255, 255),
        "La": (255, 255),
    }[mode]
    image = to_gray_or_rgb(Image.new(mode, (2, 2), white))
    assert image.mode == ("L" if mode in ("1", "La") else "RGB")
    assert np.asarray(image).min() >= 254


def test_cmyk_jpeg_has_the_right_colours() -> None:
    """Cyan ink without the others is cyan, not its negative."""
    found = decoded(encoded(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), "JPEG"))
    assert np.abs(found[8, 8].astype(int) - [0, 255, 255]).max() <= 4


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF"])
def test_exif_rotation_is_undone(orientation: int, file_format: str) -> None:
    """An image stored in any of the eight orientations comes out upright."""
    upright = np.zeros((16, 32), np.uint8)
    upright[:8, :16] = 255
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[orientation]
    image = Image.fromarray(np.ascontiguousarray(stored))
    if file_format == "TIFF":
        directory = TiffImagePlugin.ImageFileDirectory_v2()
        directory[0x0112] = orientation
        data = encoded(image, "TIFF", tiffinfo=directory)
    else:
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encoded(image, file_format, exif=exif)
    found = decoded(data)
    assert found.shape == upright.shape
    assert np.abs(found.astype(int) - upright).max() <= 8


def test_damaged_exif_does_not_hide_good_pixels() -> None:
    """Nonsense in the EXIF block leaves the image as stored."""
    data = encoded(Image.fromarray(COLOURS), exif=b"Exif\0\0MM\0*\xff\xff\xff\xff garbage")
    assert np.array_equal(decoded(data), COLOURS)


def test_first_frame_of_an_animation_counts() -> None:
    """A GIF with several frames gives its first."""
    frames = [Image.new("L", (4, 4), value) for value in (30, 200)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decoded(data).reshape(-1)[0] == 30


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "TIFF", "BMP"])
def test_truncated_files_are_refused(file_format: str) -> None:
    """Half a file is not an image; the message starts with the path."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), file_format)
    with pytest.raises(UnreadableImageError, match=r"^some/path\.x: "):
        decode_image(data[: len(data) // 2], "some/path.x")


@pytest.mark.parametrize("data", [b"", b"not an image", b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe-3.0"])
def test_what_is_no_image_is_refused(data: bytes) -> None:
    """Empty files, text, a bare signature and PostScript are refused."""
    with pytest.raises(UnreadableImageError, match="picture: "):
        decode_image(data, "picture")


def test_flipped_byte_in_png_is_found() -> None:
    """PNG has checksums, and they are checked."""
    data = bytearray(encoded(Image.fromarray(COLOURS)))
    data[data.index(b"IDAT") + 12] ^= 0x10
    with pytest.raises(UnreadableImageError):
        decode_image(bytes(data), "picture")


def test_decompression_bomb_is_refused_before_decoding() -> None:
    """An image above the limit is refused by its header."""
    data = encoded(Image.new("1", (200, 100)))
    with pytest.raises(UnreadableImageError, match=r"at most 10000 pixels, got 200 x 100"):
        decode_image(data, "picture", max_pixels=10_000)
    assert decode_image(data, "picture", max_pixels=20_000).size == (200, 100)


def test_huge_header_is_refused_by_default() -> None:
    """A small file that claims 100,000 x 100,000 pixels is refused."""
    data = bytearray(encoded(Image.new("1", (8, 8)), "BMP"))
    data[18:26] = (100_000).to_bytes(4, "little") * 2
    with pytest.raises(UnreadableImageError):
        decode_image(bytes(data), "picture")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_bytes_never_raise_anything_else(data: st.DataObject) -> None:
    """Any damage gives an image in mode L or RGB, or UnreadableImageError."""
    file_format = data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"]))
    content = bytearray(encoded(Image.fromarray(COLOURS), file_format))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(UnreadableImageError):
        assert decode_image(bytes(content), "picture").mode in ("L", "RGB")


def test_image_digest_tells_mode_size_and_pixels_apart() -> None:
    """Equal bytes in another shape or mode have another digest."""
    digests = {
        image_digest(Image.new("L", (6, 2))),
        image_digest(Image.new("L", (2, 6))),
        image_digest(Image.new("RGB", (2, 2))),
        image_digest(Image.new("L", (6, 2), 1)),
    }
    assert len(digests) == 4
    assert {len(digest) for digest in digests} == {16}
