"""Fit images to the inputs of a net: by Darknet's letterbox, or by the fitting of a recipe."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dist_net.errors import ImageError, SettingError, ShapeError
from dist_net.images import decoding
from dist_net.images.decoding import FORMATS, MAX_PIXELS, ImageSource, Pixels

Indices = NDArray[np.intp]


class ImageModel(Protocol):
    """A model that may take images: ``nn.Model``, or a foreign model."""

    @property
    def input_shape(self) -> tuple[int, ...]: ...
    @property
    def input_dtype(self) -> np.dtype[Any]: ...


def letterbox(pixels: Pixels, height: int, width: int) -> NDArray[np.float32]:
    """Return the whole image, centred on grey: (height, width, C) float32 from 0 to 1.

    The image keeps its proportions and touches two sides; the rest is 0.5. Darknet's ``classifier
    predict`` computes the same bits; see ``resize``. Raise ImageError for an image so narrow that
    it would shrink to nothing.
    """
    down, across, channels = pixels.shape
    # As in C: the ratios are float32, and integer division rounds down.
    if np.float32(width) / np.float32(across) < np.float32(height) / np.float32(down):
        new_width, new_height = width, down * width // across
    else:
        new_width, new_height = across * height // down, height
    if new_width < 1 or new_height < 1:
        raise ImageError(
            f"an image of {across}x{down} pixels has no pixels left when resized to fit into "
            f"{width}x{height}; crop it first"
        )
    boxed = np.full((height, width, channels), 0.5, np.float32)
    left, top = (width - new_width) // 2, (height - new_height) // 2
    boxed[top : top + new_height, left : left + new_width] = resize(pixels, new_height, new_width)
    return boxed


def resize(pixels: Pixels, height: int, width: int) -> NDArray[np.float32]:
    """Return the image as (height, width, C) float32 from 0 to 1, resized as Darknet does.

    The filter is bilinear, first along x and then along y, with aligned corners: output i samples
    at i (W - 1) / (w - 1). Without antialiasing, most of a large image is never read. Two quirks
    are reproduced, so that predictions agree: the last column is a plain copy; and the last row
    adds nothing from the row below, which makes it almost black if (h - 1) ((H - 1) / (h - 1))
    rounds below H - 1, as it does at one size in thirty.
    """
    left, right, along_x = _samples(pixels.shape[1], width)
    above, below, along_y = _samples(len(pixels), height)
    # The last column is the last pixel, in spite of rounding.
    left[-1], along_x[-1] = pixels.shape[1] - 1, 0
    # Rows stay flat: with an axis of three channels, the inner loops take twice as long.
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
    """Return both source pixels of each new one, and its offset, rounded as in Darknet."""
    # For a single pixel, Darknet divides by 0 and then reads out of bounds.
    scale = np.float32(size - 1) / np.float32(max(new_size - 1, 1))
    at = np.arange(new_size, dtype=np.float32) * scale
    first = at.astype(np.intp)
    return first, np.minimum(first + 1, size - 1), at - first.astype(np.float32)


def _columns(rows: Pixels, columns: Indices, channels: int) -> NDArray[np.float32]:
    """Return columns of (H, W * channels), scaled to 0 to 1."""
    numbers = columns[:, np.newaxis] * channels + np.arange(channels)
    return np.divide(rows.take(numbers.ravel(), 1), np.float32(255), dtype=np.float32)


def pad(pixels: Pixels, height: int, width: int) -> Pixels:
    """Return the whole image with its proportions, centred on black."""
    down, across, channels = pixels.shape
    scale = min(width / across, height / down)
    new_height, new_width = max(round(down * scale), 1), max(round(across * scale), 1)
    top, left = (height - new_height) // 2, (width - new_width) // 2
    padded = np.zeros((height, width, channels), np.uint8)
    inside = stretch(pixels, new_height, new_width)
    padded[top : top + new_height, left : left + new_width] = inside
    return padded


def crop(pixels: Pixels, height: int, width: int) -> Pixels:
    """Return the largest centre crop with the requested proportions, resized."""
    down, across, _ = pixels.shape
    scale = max(width / across, height / down)
    return stretch(_middle(pixels, round(height / scale), round(width / scale)), height, width)


def imagenet(pixels: Pixels, height: int, width: int) -> Pixels:
    """Return the middle 7/8 of ``crop``'s part, ImageNet's usual crop, by a bicubic filter."""
    down, across, _ = pixels.shape
    if across * height > down * width:
        kept = 7 * down // 8, 7 * down * width // (8 * height)
    else:
        kept = 7 * across * height // (8 * width), 7 * across // 8
    return stretch(_middle(pixels, *kept), height, width, Image.Resampling.BICUBIC)


def _middle(pixels: Pixels, height: int, width: int) -> Pixels:
    """Return the central rows and columns of the image, at least one and at most all."""
    down, across, _ = pixels.shape
    height, width = min(max(height, 1), down), min(max(width, 1), across)
    top, left = (down - height) // 2, (across - width) // 2
    return pixels[top : top + height, left : left + width]


def stretch(
    pixels: Pixels, height: int, width: int, by: Image.Resampling = Image.Resampling.BILINEAR
) -> Pixels:
    """Return the image, stretched by an antialiasing filter of Pillow, or as it is if it fits."""
    if pixels.shape[2] == 1:
        return np.asarray(Image.fromarray(pixels[:, :, 0]).resize((width, height), by))[:, :, None]
    return np.asarray(Image.fromarray(pixels).resize((width, height), by))


def exact(pixels: Pixels, height: int, width: int) -> Pixels:
    """Return the image unchanged; raise ImageError if it has another size."""
    down, across, _ = pixels.shape
    if (down, across) != (height, width):
        raise ImageError(
            f"an image of {across}x{down} pixels for a net of {width}x{height}, whose recipe "
            f"resizes no images; expected {width}x{height} pixels, or a recipe with the fitting "
            f"of its training images: {', '.join(FITTINGS)}"
        )
    return pixels


def unfitted(pixels: NDArray[np.uint8], fitting: str) -> NDArray[np.uint8]:
    """Return an image that ``fitting`` converts to these pixels, (H, H) or (H, H, C).

    For ``imagenet``, which cuts off an edge, the image is extended by mirroring. Other fittings
    keep an image that already fits.
    """
    if fitting != "imagenet":
        return pixels
    side = len(pixels)
    edge = -(-8 * side // 7) - side  # of both sides; the part that ``imagenet`` removes
    edges = [(edge // 2, edge - edge // 2)] * 2 + [(0, 0)] * (pixels.ndim - 2)
    return np.pad(pixels, edges, "symmetric")


FITTINGS = {each.__name__: each for each in (pad, crop, stretch, exact, imagenet)}
"""The functions that resize an image to (height, width, C), by their names in a recipe."""


def fitting_named(name: str) -> Callable[[Pixels, int, int], Pixels]:
    """Return the fitting ``name``. Raise SettingError for an unknown name."""
    if name not in FITTINGS:
        raise SettingError(f"fitting={name!r}: expected one of {', '.join(FITTINGS)}")
    return FITTINGS[name]


def is_image_shape(shape: tuple[int, ...]) -> bool:
    """Whether it is (H, W) or (H, W, 1), for grey images, or (H, W, 3)."""
    return len(shape) in (2, 3) and shape[2:] in ((), (1,), (3,))


def _require_image_shape(shape: tuple[int, ...]) -> None:
    if not is_image_shape(shape):
        raise ShapeError(
            f"a net with inputs of shape {shape} takes no images; expected (H, W), "
            f"(H, W, 1) or (H, W, 3)"
        )


def fit_image(
    image: ImageSource | NDArray[np.uint8],
    shape: tuple[int, ...],
    fitting: str,
    max_pixels: int = MAX_PIXELS,
) -> NDArray[np.uint8]:
    """Return an image as the input of a recipe's net: uint8 of ``shape``, the recipe's input_shape.

    ``predict`` and ``serve`` do the same with the recipe's ``fitting``; use this function to create
    a dataset with identical preprocessing. ``image`` is a file's path or bytes, an open file, or
    pixels, (H, W) or (H, W, C) uint8. It becomes grey for a shape of (H, W) or (H, W, 1).
    ``fitting``:

    - ``"pad"``: the whole image with its proportions, centred on black
    - ``"crop"``: the middle of the image
    - ``"stretch"``: the whole image, stretched to the size
    - ``"exact"``: never resize; an image of another size is refused
    - ``"imagenet"``: seven eighths of the middle, the usual crop for ImageNet's nets

    Raise ImageError for an image that is unreadable or does not fit, ShapeError for a shape that
    no image has, SettingError for an unknown fitting.
    """
    _require_image_shape(shape)
    read = partial(decoding.load_image, max_pixels=max_pixels)
    return _fitted(image, shape, fitting_named(fitting), read)


def _fitted(
    image: ImageSource | NDArray[np.uint8],
    shape: tuple[int, ...],
    fit: Callable[[Pixels, int, int], NDArray[Any]],
    read: Callable[[ImageSource], Pixels],
) -> NDArray[Any]:
    pixels = _pixels(image) if isinstance(image, np.ndarray) else read(image)
    if shape[2:] != (3,):
        pixels = decoding.grey(pixels)
    try:
        return fit(pixels, *shape[:2]).reshape(shape, copy=False)
    except ImageError as error:  # pixels have no name
        raise ImageError(f"{decoding.name_of(image)}: {error}") from error


def _pixels(image: NDArray[np.uint8]) -> Pixels:
    """Return the image in colour, (H, W, 3)."""
    shape = image.shape
    if image.dtype != np.uint8 or not is_image_shape(shape):
        raise ImageError(
            f"pixels of shape {shape} and dtype {image.dtype}; expected (H, W), (H, W, 1) or "
            f"(H, W, 3) uint8"
        )
    if not image.size:
        raise ImageError(f"pixels of shape {shape}; expected at least one")
    return np.broadcast_to(image.reshape(*shape[:2], -1, copy=False), (*shape[:2], 3))


class ImageInputs:
    """Converts images to inputs of a model.

    Inputs in float32 are made by ``letterbox``, for Darknet's nets; inputs in uint8 by
    ``fit_image``, for recipes. Files may have ``max_pixels`` and one of ``formats``. Raise
    ShapeError if the model's inputs cannot be images.
    """

    def __init__(
        self,
        model: ImageModel,
        max_pixels: int = MAX_PIXELS,
        fitting: str = "pad",
        formats: Sequence[str] = FORMATS,
    ) -> None:
        _require_image_shape(model.input_shape)
        self._shape = model.input_shape
        is_darknet = model.input_dtype == np.float32
        self._fit = letterbox if is_darknet else fitting_named(fitting)
        self._read = partial(decoding.load_image, max_pixels=max_pixels, formats=formats)

    def fit(self, image: ImageSource | NDArray[np.uint8]) -> NDArray[np.generic]:
        """Return the image as the model's input; raise ImageError if it does not fit."""
        return _fitted(image, self._shape, self._fit, self._read)
