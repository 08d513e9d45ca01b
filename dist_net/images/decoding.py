"""Decode image files to arrays of pixels.

Pillow decodes with libjpeg-turbo, like Debian's build of Darknet: all seven photographs of that
package decode to the same bytes. Darknet's own decoder, stb_image, differs from it by up to 3 of
255 per pixel, and by 0.007 to 0.17 on average; after letterboxing to 256x256, by up to 2.9, and by
0.005 to 0.13.

An image is decoded as a viewer displays it: turned by its EXIF orientation, on a white background,
and the first frame of an animation. (Darknet does not turn images, and drops the alpha channel.)
Colour profiles are ignored, as in Darknet.
"""

import io
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from dist_net.errors import ImageError

Pixels = NDArray[np.uint8]
"""An image: (H, W, C) uint8; C is 3, red, green and blue, or 1, grey."""

ImageSource = str | Path | bytes | BinaryIO
"""An image's path, the bytes of its file, or the file, open for reading."""

MAX_PIXELS = 1 << 26
"""The default limit of pixels; decoding takes up to ``BYTES_PER_PIXEL`` for each.

Pillow refuses more than twice ``PIL.Image.MAX_IMAGE_PIXELS`` in any case.
"""
BYTES_PER_PIXEL = 16
_BYTES_PER_PIXEL_OF = {"WEBP": 24, "AVIF": 24}  # of these an image may have fewer pixels

# Pillow reads more formats, but some start programs (EPS), others have no signature (TGA), and
# JPEG 2000 takes 800 bytes of memory for each byte of a hostile file.
BOUNDED_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "PPM", "HEIF")
"""Formats with decoders that allocate no more than the size in the header requires.

libheif refuses a frame that is larger than its header states; a worker's limit of memory holds
for whatever it misses.
"""
ISO_FORMATS = ("AVIF", "HEIF")
"""Formats in ISO media files, where Pillow, or a plugin that is registered, reads them.

AVIF frames may be larger than the header states: 1,070 bytes take 250 MB for 64 x 64 pixels.
"""
FORMATS = (*BOUNDED_FORMATS, "TIFF", "AVIF")
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")

ORIENTATION = 0x0112  # the EXIF tag, and the inverse of each of its values
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

GREY_OF_16_BITS = ("I;16", "I;16L", "I;16B", "I;16N", "I")  # Pillow's modes
WITH_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")

MAX_READS = 1 << 17
"""The maximum number of reads from a file: 100 times as many as any common image needs."""

MAX_SCANS = 64
"""Scans of a JPEG with the maximum number of pixels, five times the usual; smaller images may have
proportionally more."""
MAX_PROFILES = 16
"""Colour profiles in a PNG; one is usual, and each is decompressed to up to 1 MiB."""
STRIP_BYTES = 300
"""Memory that Pillow needs for each strip or tile of a TIFF, beside its pixels."""
PIECE_BYTES = 1 << 20


def load_image(
    source: ImageSource, max_pixels: int = MAX_PIXELS, formats: Sequence[str] = FORMATS
) -> Pixels:
    """Return the image in a file, in bytes, or in a seekable binary file: (H, W, 3), read-only.

    Raise ImageError, in one line, for a file that is unreadable, not in one of ``formats``,
    damaged, cut short or empty, or that has more than ``max_pixels``, which is checked before
    decoding. For images of strangers pass ``BOUNDED_FORMATS``.
    """
    if not (isinstance(source, bytes | str | Path) or hasattr(source, "seekable")):
        raise ImageError(
            f"an image of type {type(source).__name__}; expected a path, the bytes of a file, an "
            f"open file, or an array of pixels: np.asarray(image)"
        )
    try:
        if isinstance(source, bytes):
            return _decoded(BytesIO(source), max_pixels, formats)
        if not isinstance(source, str | Path):
            return _decoded(source, max_pixels, formats)
        with Path(source).open("rb") as file:
            return _decoded(file, max_pixels, formats)
    except (ImageError, OSError, ValueError) as error:
        what = str(error)
        if not isinstance(error, ImageError):
            what = f"{getattr(error, 'strerror', None) or error}; expected an image file"
        # One line, even if the name or the decoder's message has several.
        raise ImageError(" ".join(f"{name_of(source)}: {what}".split())) from error


def name_of(source: object) -> str:
    return str(source) if isinstance(source, str | Path) else "image"


class _LimitedReads(io.IOBase):
    """A file that may be read at most ``MAX_READS`` times.

    Pillow searches a JPEG for markers byte by byte, and reads empty chunks of a PNG one by one:
    without a limit, 30 MiB of either keep it busy for half a minute.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._left = MAX_READS

    def read(self, size: int = -1) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise ImageError(
                f"not decoded after {MAX_READS:,} reads from the file, 100 times as many as usual"
            )
        return self._file.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def _decoded(file: BinaryIO, max_pixels: int, formats: Sequence[str]) -> Pixels:
    if not file.seekable():
        raise ImageError("a pipe; expected a file, because decoders seek")
    if not file.read(1):
        raise ImageError("an empty file, 0 bytes; expected an image")
    limited = cast(BinaryIO, _LimitedReads(file))
    try:
        _require_modest_header(file, max_pixels)
        with Image.open(limited, formats=_formats_of(file, formats)) as image:
            bytes_per_pixel = _BYTES_PER_PIXEL_OF.get(image.format or "", BYTES_PER_PIXEL)
            max_size = max_pixels * BYTES_PER_PIXEL // bytes_per_pixel
            _require_size(*image.size, max_size)
            if image.format in ("JPEG", "MPO"):
                _require_few_scans(file, image.width * image.height, max_pixels)
            image.load()
            upright = _upright(image)
        del image  # unless it is upright itself, to have the memory
        return np.asarray(_on_white(_of_bytes(upright)))
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"{error}; expected at most {max_pixels:,}; make the image smaller first"
        ) from error
    except UnidentifiedImageError as error:
        expected = ", ".join(each for each in formats if each not in ISO_FORMATS)
        raise ImageError(f"not an image; expected one of {expected}") from error
    except Exception as error:  # a decoder may raise anything for a damaged file
        raise ImageError(f"damaged or cut short: {error or type(error).__name__}") from error


def _formats_of(file: BinaryIO, formats: Sequence[str]) -> list[str]:
    """Return the ``formats`` that a file may have: those in ISO files load more of Pillow.

    Raise ImageError for a HEIC file that this host cannot decode.
    """
    file.seek(4)
    kind = file.read(8)
    file.seek(0)
    if kind[:4] != b"ftyp":
        return [each for each in formats if each not in ISO_FORMATS]
    if kind[4:] in HEIC_BRANDS and "HEIF" in formats and (reason := refusal_of_format("HEIF")):
        raise ImageError(reason)
    return [each for each in formats if each in iso_formats()]


@cache
def iso_formats() -> tuple[str, ...]:
    """Return the formats of ISO_FORMATS that can be read: HEIF needs the package pillow-heif."""
    Image.init()
    with suppress(ImportError):
        # One thread: the callers decode several images at once.
        import_module("pillow_heif").register_heif_opener(decode_threads=1)
    return tuple(each for each in ISO_FORMATS if each in Image.OPEN)


def refusal_of_format(kind: str) -> str | None:
    """Return why this host cannot decode one of ``ISO_FORMATS``, with a remedy; None if it can."""
    remedy = "; install it with: pip install pillow-heif" if kind == "HEIF" else ""
    return None if kind in iso_formats() else f"{kind} images need a plugin of Pillow{remedy}"


def _require_modest_header(file: BinaryIO, max_pixels: int) -> None:
    """Refuse files that keep Pillow busy for minutes, or with parts larger than the image."""
    file.seek(0)
    magic = file.read(4)
    if magic[:2] in (b"P1", b"P2", b"P3"):  # comments take quadratic time
        raise ImageError("a text PPM file; expected a binary PPM file")
    if magic == b"\x89PNG" and (profiles := _count(file, b"iCCP")) > MAX_PROFILES:
        raise ImageError(f"{profiles:,} colour profiles; expected at most {MAX_PROFILES}")
    if magic[:2] in (b"II", b"MM"):
        strips, strip_bytes = _tiff_strips(file)
        if strips * (strip_bytes + STRIP_BYTES) > (most := max_pixels * BYTES_PER_PIXEL):
            raise ImageError(
                f"a TIFF file of {strips:,} strips of {strip_bytes:,} bytes; expected at most "
                f"{most:,} bytes in all"
            )
    file.seek(0)


def _require_few_scans(file: BinaryIO, pixels: int, max_pixels: int) -> None:
    """Refuse a JPEG with too many scans: even an empty scan takes the full time to decode."""
    here = file.tell()
    scans, most = _count(file, b"\xff\xda"), max(MAX_SCANS * max_pixels // pixels, MAX_SCANS)
    file.seek(here)
    if scans > most:
        raise ImageError(
            f"a JPEG file of {scans:,} scans of {pixels:,} pixels; expected at most {most:,} scans"
        )


def _count(file: BinaryIO, mark: bytes) -> int:
    file.seek(0)
    count, piece = 0, b""
    while more := file.read(PIECE_BYTES):
        piece = piece[-len(mark) + 1 :] + more
        count += piece.count(mark)
    return count


def _tiff_strips(file: BinaryIO) -> tuple[int, int]:
    """Return the number of a TIFF's strips or tiles, and their size, which may exceed the image."""
    tiff = TiffImagePlugin
    file.seek(0)
    header = file.read(16)
    tags = tiff.ImageFileDirectory_v2(header if header[2] == 43 else header[:8])
    file.seek(tags.next)
    tags.load(file)
    width, height = tags.get(tiff.IMAGEWIDTH, 0), tags.get(tiff.IMAGELENGTH, 0)
    width = tags.get(tiff.TILEWIDTH, width)
    height = tags.get(tiff.TILELENGTH, min(tags.get(tiff.ROWSPERSTRIP, height), height))
    bits = max(tags.get(tiff.BITSPERSAMPLE, (1,))) * tags.get(tiff.SAMPLESPERPIXEL, 1)
    strips = max(len(tags.get(tag, ())) for tag in (tiff.STRIPOFFSETS, tiff.TILEOFFSETS))
    return strips, width * height * bits // 8


def _require_size(width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise ImageError(f"an image of {width}x{height} pixels; expected at least one")
    if width * height > max_pixels:
        raise ImageError(
            f"{width}x{height} pixels are {width * height:,}; expected at most {max_pixels:,}; "
            f"make the image smaller first"
        )


def _upright(image: Image.Image) -> Image.Image:
    """Return the image, turned and mirrored by its EXIF orientation; ignore damaged EXIF."""
    try:
        orientation = image.getexif().get(ORIENTATION)
    except Exception:  # as in _decoded; the image itself is whole
        return image
    return image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image


def _of_bytes(image: Image.Image) -> Image.Image:
    """Return the image with 8 bits per channel: the upper 8 of 16, as Darknet does."""
    if image.mode not in GREY_OF_16_BITS and image.mode != "F":
        return image
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 0xFFFF:
        raise ImageError("pixels of 32 bits; expected 8 or 16 a channel")
    transparent = image.info.get("transparency")  # None or a grey of 16 bits
    white = values == transparent if isinstance(transparent, int) else False
    return Image.fromarray(np.where(white, 0xFF, values >> 8).astype(np.uint8))


def _on_white(image: Image.Image) -> Image.Image:
    """Return the image in RGB, with white behind transparent parts."""
    transparent = image.info.get("transparency")
    if isinstance(transparent, tuple) and max(transparent) > 0xFF:
        # Pillow keeps the upper 8 bits of a pixel's 16, but all 16 of the transparent colour.
        image.info["transparency"] = tuple(value >> 8 for value in transparent)
    if image.mode not in WITH_ALPHA and "transparency" not in image.info:
        return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it
    with_alpha = image if image.mode == "RGBA" else image.convert("RGBA")  # which would copy it
    white = Image.new("RGB", image.size, "white")
    white.paste(with_alpha, mask=with_alpha.getchannel("A"))
    return white


def grey(pixels: Pixels) -> Pixels:
    """Return the image in one channel, (H, W, 1): its luma by ITU-R BT.601."""
    return np.asarray(Image.fromarray(pixels).convert("L"))[:, :, np.newaxis]
