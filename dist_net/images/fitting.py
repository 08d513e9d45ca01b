"""Images made to fit the inputs of a net: by Darknet's letterbox, or as a recipe says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dist_net.errors import ImageError, SettingError, ShapeError
from dist_net.images.decoding import MAX_PIXELS, ImageSource, Pixels, grey, load_image, name_of
from dist_net.nn import Model

Indices = NDArray[np.intp]


def letterbox(pixels: Pixels, height: int, width: int) -> NDArray[np.float32]:
    """The whole image in the middle of grey, (height, width, C) float32 from 0 to 1.

    It is resized, its proportions kept, until it touches two sides; the rest is 0.5. This is what
    the reference program's ``classifier predict`` does, to the last bit of its bilinear resizing;
    see ``resize``. Raises ImageError for an image so narrow that no pixel of it would be left.
    """
    down, across, channels = pixels.shape
    # As in C: the ratios are float32, and whole numbers are divided and rounded down.
    if np.float32(width) / np.float32(across) < np.float32(height) / np.float32(down):
        new_width, new_height = width, down * width // across
    else:
        new_width, new_height = across * height // down, height
    if new_width < 1 or new_height < 1:
        raise ImageError(
            f"an image of {across}x{down} pixels has no pixel left when it is made to fit into "
            f"{width}x{height}; crop it first"
        )
    boxed = np.full((height, width, channels), 0.5, np.float32)
    left, top = (width - new_width) // 2, (height - new_height) // 2
    boxed[top : top + new_height, left : left + new_width] = resize(pixels, new_height, new_width)
    return boxed


def resize(pixels: Pixels, height: int, width: int) -> NDArray[np.float32]:
    """The image as (height, width, C) float32 from 0 to 1, resized as the reference does it.

    Bilinear, first along x and then along y, with the corners aligned: output i samples at
    i (W - 1) / (w - 1). There is no antialiasing, so most of a large image is never read. Two
    quirks are kept, so that answers agree: the last column is a plain copy; and the last row takes
    nothing from below it, so that it comes out almost black where (h - 1) ((H - 1) / (h - 1)) is
    rounded below H - 1, as at one size in thirty.
    """
    left, right, along_x = _samples(pixels.shape[1], width)
    above, below, along_y = _samples(len(pixels), height)
    # The last column lies on the last pixel, whatever the rounding.
    left[-1], along_x[-1] = pixels.shape[1] - 1, 0
    # Rows are kept flat: with an axis of channels, loops over three numbers take twice the time.
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

    In float32, to round as the reference does.
    """
    # For a single pixel the reference divides by 0, and then reads rows that are not there.
    scale = np.float32(size - 1) / np.float32(max(new_size - 1, 1))
    at = np.arange(new_size, dtype=np.float32) * scale
    first = at.astype(np.intp)
    return first, np.minimum(first + 1, size - 1), at - first.astype(np.float32)


def _columns(rows: Pixels, columns: Indices, channels: int) -> NDArray[np.float32]:
    """These columns of (H, W channels), from 0 to 1."""
    numbers = columns[:, np.newaxis] * channels + np.arange(channels)
    return np.divide(rows.take(numbers.ravel(), 1), np.float32(255), dtype=np.float32)


def pad(pixels: Pixels, height: int, width: int) -> Pixels:
    """The whole image, its proportions kept, in the middle of black."""
    down, across, channels = pixels.shape
    scale = min(width / across, height / down)
    new_height, new_width = max(round(down * scale), 1), max(round(across * scale), 1)
    top, left = (height - new_height) // 2, (width - new_width) // 2
    padded = np.zeros((height, width, channels), np.uint8)
    inside = stretch(pixels, new_height, new_width)
    padded[top : top + new_height, left : left + new_width] = inside
    return padded


def crop(pixels: Pixels, height: int, width: int) -> Pixels:
    """The largest part in the middle of the image that has the proportions asked for."""
    down, across, _ = pixels.shape
    scale = max(width / across, height / down)
    return stretch(_middle(pixels, round(height / scale), round(width / scale)), height, width)


def imagenet(pixels: Pixels, height: int, width: int) -> Pixels:
    """The middle seven eighths of what ``crop`` keeps, as nets for ImageNet are evaluated.

    Resized by Pillow's bicubic filter, which antialiases.
    """
    down, across, _ = pixels.shape
    if across * height > down * width:
        kept = 7 * down // 8, 7 * down * width // (8 * height)
    else:
        kept = 7 * across * height // (8 * width), 7 * across // 8
    middle = _middle(pixels, *kept)
    return _resized(middle, height, width, Image.Resampling.BICUBIC)


def _middle(pixels: Pixels, height: int, width: int) -> Pixels:
    """So many rows and columns of the image, at least one and at most all."""
    down, across, _ = pixels.shape
    height, width = min(max(height, 1), down), min(max(width, 1), across)
    top, left = (down - height) // 2, (across - width) // 2
    return pixels[top : top + height, left : left + width]


def stretch(pixels: Pixels, height: int, width: int) -> Pixels:
    """The whole image, stretched to the size.

    Each new pixel is made of all that it covers (Pillow's bilinear filter, which antialiases); a
    image that already has the size stays as it is.
    """
    return _resized(pixels, height, width, Image.Resampling.BILINEAR)


def _resized(pixels: Pixels, height: int, width: int, by: Image.Resampling) -> Pixels:
    if pixels.shape[2] == 1:
        return np.asarray(Image.fromarray(pixels[:, :, 0]).resize((width, height), by))[:, :, None]
    return np.asarray(Image.fromarray(pixels).resize((width, height), by))


def exact(pixels: Pixels, height: int, width: int) -> Pixels:
    """The image as it is; raises ImageError if it has another size."""
    down, across, _ = pixels.shape
    if (down, across) != (height, width):
        raise ImageError(
            f"an image of {across}x{down} pixels for a net of {width}x{height}, whose recipe does "
            f"not say how images are made to fit; expected {width}x{height} pixels, or a recipe "
            f"with the fitting that its training images had: {', '.join(FITTINGS)}"
        )
    return pixels


def unfitted(pixels: NDArray[np.uint8], fitting: str) -> NDArray[np.uint8]:
    """An image that ``fitting`` makes into these pixels, (H, H) or (H, H, C).

    ``imagenet`` cuts off an edge, which mirrors the image here. Others keep an image that
    already fits.
    """
    if fitting != "imagenet":
        return pixels
    side = len(pixels)
    edge = -(-8 * side // 7) - side  # of both sides; see what ``imagenet`` keeps
    edges = [(edge // 2, edge - edge // 2)] * 2 + [(0, 0)] * (pixels.ndim - 2)
    return np.pad(pixels, edges, "symmetric")


FITTINGS = {each.__name__: each for each in (pad, crop, stretch, exact, imagenet)}
"""How an image becomes (height, width, C), by the name in a recipe."""


def fitting_named(name: str) -> Callable[[Pixels, int, int], Pixels]:
    """The fitting of this name; raises SettingError if there is none."""
    if name not in FITTINGS:
        raise SettingError(f"fitting={name!r}: expected one of {', '.join(FITTINGS)}")
    return FITTINGS[name]


def takes_images(model: Model) -> bool:
    """Whether its inputs are (H, W) or (H, W, 1), for grey images, or (H, W, 3)."""
    return _is_image_shape(model.input_shape)


def _is_image_shape(shape: tuple[int, ...]) -> bool:
    return len(shape) in (2, 3) and shape[2:] in ((), (1,), (3,))


def _require_image_shape(shape: tuple[int, ...]) -> None:
    if not _is_image_shape(shape):
        raise ShapeError(
            f"a net whose inputs are of shape {shape} takes no images; expected (H, W), "
            f"(H, W, 1) or (H, W, 3)"
        )


def fit_image(
    image: ImageSource | NDArray[np.uint8],
    shape: tuple[int, ...],
    fitting: str,
    max_pixels: int = MAX_PIXELS,
) -> NDArray[np.uint8]:
    """An image as a recipe's net takes it: uint8 of ``shape``, which is a recipe's input_shape.

    ``predict`` and ``serve`` do the same with the recipe's ``fitting``; use this to make a dataset
    of images like theirs. ``image``: a file's path or bytes, the open file, or pixels,
    (H, W) or (H, W, C) uint8. For a shape of (H, W) or (H, W, 1) it becomes grey. ``fitting``:

    - ``"pad"``: the whole image, its proportions kept, in the middle of black
    - ``"crop"``: the middle of the image
    - ``"stretch"``: the whole image, stretched to the size
    - ``"exact"``: no image is resized; one of another size is refused
    - ``"imagenet"``: seven eighths of the middle, as nets for ImageNet take it

    Raises ImageError for an image that cannot be read or does not fit, ShapeError for a shape that
    no image has, SettingError for an unknown fitting.
    """
    _require_image_shape(shape)
    return _fitted(image, shape, fitting_named(fitting), max_pixels)


def _fitted(
    image: ImageSource | NDArray[np.uint8],
    shape: tuple[int, ...],
    fit: Callable[[Pixels, int, int], NDArray[Any]],
    max_pixels: int,
) -> NDArray[Any]:
    pixels = _pixels(image, max_pixels)
    if shape[2:] != (3,):
        pixels = grey(pixels)
    try:
        return fit(pixels, *shape[:2]).reshape(shape, copy=False)
    except ImageError as error:  # pixels have no name
        name = "image" if isinstance(image, np.ndarray) else name_of(image)
        raise ImageError(f"{name}: {error}") from error


def _pixels(image: ImageSource | NDArray[np.uint8], max_pixels: int) -> Pixels:
    """The image in colour, (H, W, 3)."""
    if not isinstance(image, np.ndarray):
        return load_image(image, max_pixels=max_pixels)
    shape = image.shape
    if image.dtype != np.uint8 or not _is_image_shape(shape):
        raise ImageError(
            f"pixels of shape {shape} and dtype {image.dtype}; expected (H, W), (H, W, 1) or "
            f"(H, W, 3) uint8"
        )
    if not image.size:
        raise ImageError(f"pixels of shape {shape}; expected at least one")
    return np.broadcast_to(image.reshape(*shape[:2], -1, copy=False), (*shape[:2], 3))


class ImageInputs:
    """Makes images into inputs of a model.

    Models with float32 inputs get them as Darknet's nets do, by ``letterbox``; those with uint8, as
    recipes do, by ``fit_image``. Raises ShapeError for a model that takes no images.
    """

    def __init__(self, model: Model, max_pixels: int = MAX_PIXELS, fitting: str = "pad") -> None:
        _require_image_shape(model.input_shape)
        self._shape = model.input_shape
        is_darknet = model.input_dtype == np.float32
        self._fit = letterbox if is_darknet else fitting_named(fitting)
        self._max_pixels = max_pixels

    def fit(self, image: ImageSource) -> NDArray[np.generic]:
        """The image as the model takes it; raises ImageError for one that does not fit."""
        return _fitted(image, self._shape, self._fit, self._max_pixels)
