"""Pictures as arrays, and arrays as what a net takes.

Decoding is Pillow's. Debian's build of the reference program decodes by libjpeg-turbo, as Pillow
does, and has the same bytes of all seven photographs of its package. The original's own decoder,
stb_image, differs there by up to 3 of 255 in a pixel, and by 0.007 to 0.17 on average; after
letterboxing to 256x256, by up to 2.9, and by 0.005 to 0.13.

Where a decoder has a choice, a person expects what a viewer shows: a picture stands as its EXIF
orientation says, what is transparent lies on white, an animation is its first frame. (The original
does not turn pictures, and drops the alpha channel.) Colour profiles are ignored, as there.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from dist_net.errors import ImageError, SettingError

Pixels = NDArray[np.uint8]
"""A picture: (H, W, C) uint8; C is 3, red, green and blue, or 1, grey."""

Source = str | Path | bytes | BinaryIO
"""Where a picture lies, the bytes of its file, or the file, open for reading."""

MOST_PIXELS = 1 << 26
"""What a picture may have unless the caller says otherwise; each takes up to 12 bytes for a while.

Pillow refuses more than twice ``PIL.Image.MAX_IMAGE_PIXELS`` in any case.
"""

# Pillow knows more, but some of those start programs (EPS) and others have no signature (TGA).
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "JPEG2000", "PPM")

ORIENTATION = 0x0112  # the EXIF tag, and what undoes each of its values
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

MOST_READS = 1 << 17
"""How often a decoder may read from a file: 100 times as often as for any picture in common use."""

Indices = NDArray[np.intp]


def load_image(source: Source, name: str | None = None, most_pixels: int = MOST_PIXELS) -> Pixels:
    """The picture in a file, in bytes, or in a seekable binary file: (H, W, 3), read-only.

    ``name`` is what errors call it; a path names itself. Raises ImageError, in one line, for what
    cannot be read, is no picture of a known format, is damaged or cut short, has no pixels, or
    has more than ``most_pixels``, which is found out before they are decoded.
    """
    if name is None:
        name = name_of(source)
    try:
        if isinstance(source, bytes):
            return _decoded(BytesIO(source), name, most_pixels)
        if not isinstance(source, str | Path):
            return _decoded(source, name, most_pixels)
        with Path(source).open("rb") as file:
            return _decoded(file, name, most_pixels)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise _error(name, f"{reason}; expected the file of a picture") from error


def name_of(source: Source) -> str:
    """What a picture is called where nobody gave it a name."""
    return str(source) if isinstance(source, str | Path) else "picture"


def _error(name: str, what: str) -> ImageError:
    """An error of one line, whatever is in a file's name or in what a decoder says."""
    return ImageError(" ".join(f"{name}: {what}".split()))


class _LimitedReads(io.IOBase):
    """A file that refuses to be read in too many small pieces.

    Pillow looks for a JPEG's markers byte by byte, and goes through empty chunks of a PNG one by
    one: without a limit, 30 MiB of either keep it busy for half a minute.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file = file
        self._name = name
        self._left = MOST_READS

    def read(self, size: int = -1) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise _error(self._name, f"damaged: not decoded after {MOST_READS:,} reads")
        return self._file.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


def _decoded(file: BinaryIO, name: str, most_pixels: int) -> Pixels:
    if not file.seekable():  # decoders go back and forth
        raise _error(name, "a pipe; expected a file, which can be read from its beginning again")
    if not file.read(1):
        raise _error(name, "an empty file, 0 bytes; expected a picture")
    file.seek(0)
    limited = cast(BinaryIO, _LimitedReads(file, name))
    try:
        with Image.open(limited, formats=FORMATS) as image:
            _require_size(*image.size, name, most_pixels)
            image.load()
            upright = _upright(image)
            return np.asarray(_on_white(_of_bytes(upright, name)))
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise _error(name, f"{error}; make the picture smaller first") from error
    except UnidentifiedImageError as error:
        raise _error(name, f"not a picture; expected one of {', '.join(FORMATS)}") from error
    except Exception as error:  # whatever a decoder may raise on a damaged file
        raise _error(name, f"damaged or cut short: {error or type(error).__name__}") from error


def _require_size(width: int, height: int, name: str, most_pixels: int) -> None:
    if width < 1 or height < 1:
        raise _error(name, f"a picture of {width}x{height} pixels; expected at least one")
    if width * height > most_pixels:
        raise _error(
            name,
            f"{width}x{height} pixels are {width * height:,}; expected at most {most_pixels:,}; "
            f"make the picture smaller first",
        )


def _upright(image: Image.Image) -> Image.Image:
    """The picture turned and mirrored as its EXIF says; damaged EXIF says nothing."""
    try:
        orientation = image.getexif().get(ORIENTATION)
    except Exception:  # as in _decoded; the picture itself is whole
        return image
    return image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image


def _of_bytes(image: Image.Image, name: str) -> Image.Image:
    """The picture in 8 bits a channel: of 16 the upper ones, as the reference takes them."""
    if image.mode not in GREY_OF_16_BITS and image.mode != "F":
        return image
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 0xFFFF:
        raise _error(name, "pixels of 32 bits; expected 8 or 16 a channel")
    return Image.fromarray((values >> 8).astype(np.uint8))


def _on_white(image: Image.Image) -> Image.Image:
    """The picture in RGB; where it is transparent, there is white behind it."""
    if image.mode not in WITH_ALPHA and "transparency" not in image.info:
        return image.convert("RGB")
    with_alpha = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(with_alpha, mask=with_alpha.getchannel("A"))
    return white


def letterbox(pixels: Pixels, height: int, width: int) -> NDArray[np.float32]:
    """The whole picture in the middle of grey, (height, width, C) float32 from 0 to 1.

    It is resized, its proportions kept, until it touches two sides; the rest is 0.5. This is what
    the reference program's ``classifier predict`` does, to the last bit of its bilinear resizing;
    see ``resize``. Raises ImageError for a picture so narrow that nothing would be left of it.
    """
    down, across, channels = pixels.shape
    # As in C: the ratios are float32, and whole numbers are divided and rounded down.
    if np.float32(width) / np.float32(across) < np.float32(height) / np.float32(down):
        new_width, new_height = width, down * width // across
    else:
        new_width, new_height = across * height // down, height
    if new_width < 1 or new_height < 1:
        raise ImageError(
            f"a picture of {across}x{down} pixels has no pixel left when it is made to fit into "
            f"{width}x{height}; crop it first"
        )
    boxed = np.full((height, width, channels), 0.5, np.float32)
    left, top = (width - new_width) // 2, (height - new_height) // 2
    boxed[top : top + new_height, left : left + new_width] = resize(pixels, new_height, new_width)
    return boxed


def resize(pixels: Pixels, height: int, width: int) -> NDArray[np.float32]:
    """The picture as (height, width, C) float32 from 0 to 1, resized as the reference does it.

    Bilinear, first along x and then along y, with the corners aligned: output i samples at
    i (W - 1) / (w - 1). There is no antialiasing, so most of a large picture is never looked at,
    nor is it here. Two quirks are kept, since answers should agree: the last column is a plain
    copy; and the last row takes nothing from below it, so that it comes out almost black where
    (h - 1) ((H - 1) / (h - 1)) is rounded below H - 1, as at one size in thirty.
    """
    left, right, along_x = _samples(pixels.shape[1], width)
    above, below, along_y = _samples(len(pixels), height)
    # The last column lies on the last pixel, whatever the rounding.
    left[-1], along_x[-1] = pixels.shape[1] - 1, 0
    # All is done on rows without an axis of channels: loops over three numbers take twice the time.
    channels = pixels.shape[2]
    rows, of_row = np.unique(np.concatenate([above, below]), return_inverse=True)
    needed = pixels.take(rows, 0).reshape(len(rows), -1, copy=False)
    x = along_x.repeat(channels)
    narrow = _columns(needed, left, channels)
    narrow *= 1 - x
    narrow += _columns(needed, right, channels) * x
    y = along_y[:, np.newaxis]
    resized = narrow.take(of_row[:height], 0)
    resized *= 1 - y
    resized[:-1] += narrow.take(of_row[height : 2 * height - 1], 0) * y[:-1]
    return resized.reshape(height, width, channels, copy=False)


def _samples(size: int, new_size: int) -> tuple[Indices, Indices, NDArray[np.float32]]:
    """For each new pixel: the two old ones that it lies between, and how far it is past the first.

    In float32, because where the reference rounds is part of its answer.
    """
    # For a single pixel the reference divides by 0, and of rows it then reads what is not there.
    scale = np.float32(size - 1) / np.float32(max(new_size - 1, 1))
    at = np.arange(new_size, dtype=np.float32) * scale
    first = at.astype(np.intp)
    return first, np.minimum(first + 1, size - 1), at - first.astype(np.float32)


def _columns(rows: Pixels, columns: Indices, channels: int) -> NDArray[np.float32]:
    """Those columns of (H, W channels), from 0 to 1."""
    numbers = columns[:, np.newaxis] * channels + np.arange(channels)
    return np.divide(rows.take(numbers.ravel(), 1), np.float32(255), dtype=np.float32)


def pad(pixels: Pixels, height: int, width: int) -> Pixels:
    """The whole picture, its proportions kept, in the middle of black."""
    down, across, channels = pixels.shape
    scale = min(width / across, height / down)
    new_height, new_width = max(round(down * scale), 1), max(round(across * scale), 1)
    top, left = (height - new_height) // 2, (width - new_width) // 2
    padded = np.zeros((height, width, channels), np.uint8)
    inside = stretch(pixels, new_height, new_width)
    padded[top : top + new_height, left : left + new_width] = inside
    return padded


def crop(pixels: Pixels, height: int, width: int) -> Pixels:
    """The middle of the picture: as much as has the proportions that are asked for."""
    down, across, _ = pixels.shape
    scale = max(width / across, height / down)
    kept_down = min(max(round(height / scale), 1), down)
    kept_across = min(max(round(width / scale), 1), across)
    top, left = (down - kept_down) // 2, (across - kept_across) // 2
    return stretch(pixels[top : top + kept_down, left : left + kept_across], height, width)


def stretch(pixels: Pixels, height: int, width: int) -> Pixels:
    """The whole picture, whatever becomes of its proportions.

    Each new pixel is made of all that it covers (Pillow's bilinear filter, which antialiases); a
    picture that has the size already stays as it is.
    """
    bands = [
        Image.fromarray(pixels[:, :, channel]).resize((width, height), Image.Resampling.BILINEAR)
        for channel in range(pixels.shape[2])
    ]
    return np.stack([np.asarray(band) for band in bands], axis=2)


def exact(pixels: Pixels, height: int, width: int) -> Pixels:
    """The picture, which must have the size; raises ImageError if it has another."""
    down, across, _ = pixels.shape
    if (down, across) != (height, width):
        raise ImageError(
            f"a picture of {across}x{down} pixels for a net of {width}x{height}, whose recipe does "
            f"not say how pictures are made to fit; expected {width}x{height} pixels, or a recipe "
            f"with the fitting that its training pictures had: {', '.join(FITTINGS)}"
        )
    return pixels


FITTINGS = {each.__name__: each for each in (pad, crop, stretch, exact)}
"""How a picture becomes (height, width, C), by the name that a recipe gives it."""


def fitting_called(name: str) -> Callable[[Pixels, int, int], Pixels]:
    """The fitting of this name; raises SettingError if there is none."""
    if name not in FITTINGS:
        raise SettingError(f"fitting={name!r}: expected one of {', '.join(FITTINGS)}")
    return FITTINGS[name]


def grey(pixels: Pixels) -> Pixels:
    """The picture in one channel, (H, W, 1): its luma by ITU-R BT.601."""
    return np.asarray(Image.fromarray(pixels).convert("L"))[:, :, np.newaxis]
