"""From the bytes of an image file to a PIL image in mode "L" or "RGB".

In: gray, RGB, palette, transparency (over white), 16-bit, 32-bit, CMYK, Lab, EXIF rotation, a
limit on pixels, and one error for everything that does not decode. Left out: colour profiles
(ignored, as is usual in the field), animation (the first frame counts), vector formats.
"""

from __future__ import annotations

import hashlib
import io

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from storage_schemas.errors import UnreadableImageError

MAX_PIXELS = 89_478_485
"""A quarter of a gigabyte as RGB: Pillow's own limit against decompression bombs."""

MAX_FILE_BYTES = 2**29
"""What MAX_PIXELS take without compression, three channels of 16 bit each."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "TGA", "AVIF")
"""Raster formats only: Pillow's PostScript reader would start another program."""

SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in (
        *("jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "dib", "gif", "tif", "tiff"),
        *("ppm", "pgm", "pbm", "pnm", "jp2", "j2k", "tga", "avif"),
    )
)

_EXIF_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode_image(data: bytes, name: str, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an image file.

    Args:
        data: The whole file.
        name: Path or key; starts the error message.
        max_pixels: Larger images are refused before they are decoded.

    Returns:
        The first frame, upright, in mode "L" (gray files) or "RGB".

    Raises:
        UnreadableImageError: If the bytes are empty, no known format, cut short, damaged, or
            hold more than `max_pixels`.
    """
    if not data:
        raise UnreadableImageError(f"{name}: the file is empty")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = image.size
        if width * height <= max_pixels:
            image.load()
            return _upright(to_gray_or_rgb(image), _orientation(image))
    except UnreadableImageError:
        raise
    except Exception as error:  # damaged files raise a dozen unrelated types in Pillow
        reason = str(error).replace("\n", " ") or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = f"not an image in a known format ({', '.join(FORMATS)})"
        raise UnreadableImageError(f"{name}: {reason}") from error
    raise UnreadableImageError(
        f"{name}: an image must have at most {max_pixels} pixels, got {width} x {height}"
    )


def to_gray_or_rgb(image: Image.Image) -> Image.Image:
    """Return a loaded image of any Pillow mode as "L" or "RGB".

    Transparency goes over white. Integers above 8 bit are read as 16-bit, floats as [0, 1] where
    no value is larger and as [0, 255] otherwise.
    """
    mode = image.mode
    if "transparency" in image.info and mode in ("1", "L", "P", "RGB"):
        return _over_white(image.convert("RGBA"), gray=mode in ("1", "L"))
    if mode in ("L", "RGB"):
        return image
    if mode in ("LA", "La", "RGBA", "RGBa", "PA"):
        if mode in ("La", "RGBa"):
            image = image.convert(mode[:-1] + "A")
        return _over_white(image.convert("RGBA"), gray=mode in ("LA", "La"))
    if mode == "1":
        return image.convert("L")
    if mode.startswith("I"):
        deep = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        return Image.fromarray(((deep + 128) // 257).astype(np.uint8))
    if mode == "F":
        values = np.nan_to_num(np.asarray(image, np.float64))
        scale = 255.0 if values.max(initial=0.0) <= 1.0 else 1.0
        return Image.fromarray(np.clip(np.rint(values * scale), 0, 255).astype(np.uint8))
    if mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        if converted is None:
            raise UnreadableImageError("Lab colours cannot be converted to RGB")
        return converted
    return image.convert("RGB")


def image_digest(image: Image.Image) -> bytes:
    """Return blake2b-128 over mode, size and pixels: for sources without files of their own."""
    digest = hashlib.blake2b(f"{image.mode} {image.size}".encode(), digest_size=16)
    digest.update(image.tobytes())
    return digest.digest()


def _over_white(rgba: Image.Image, *, gray: bool) -> Image.Image:
    white = Image.new("RGB", rgba.size, (255, 255, 255))
    white.paste(rgba, mask=rgba.getchannel("A"))
    return white.getchannel("R") if gray else white


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # damaged EXIF beside good pixels: the pixels count
        return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)
