"""Pictures as the inputs of a model: which models take them, and how they are made to fit."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dist_net.errors import ImageError, ShapeError
from dist_net.nn import Model
from dist_net.pictures.decoding import (
    MOST_PIXELS,
    Pixels,
    Source,
    fitting_called,
    grey,
    letterbox,
    load_image,
    name_of,
)


def takes_pictures(model: Model) -> bool:
    """Whether its inputs are (H, W), (H, W, 1), and then pictures are made grey, or (H, W, 3)."""
    return is_picture_shape(model.input_shape)


def is_picture_shape(shape: tuple[int, ...]) -> bool:
    """Whether it is (H, W), (H, W, 1) or (H, W, 3)."""
    return len(shape) in (2, 3) and shape[2:] in ((), (1,), (3,))


def fit_picture(
    picture: Source | NDArray[np.uint8],
    shape: tuple[int, ...],
    fitting: str,
    most_pixels: int = MOST_PIXELS,
) -> NDArray[np.uint8]:
    """A picture as a recipe's net takes it: uint8 of ``shape``, which is a recipe's input_shape.

    This is what ``predict`` and ``serve`` do with the recipe's ``fitting``; a dataset made by it
    holds what they will ask with. ``picture``: a file's path or bytes, the open file, or pixels,
    (H, W) or (H, W, C) uint8. For a shape of (H, W) or (H, W, 1) it becomes grey. ``fitting``:

    - ``"pad"``: the whole picture, its proportions kept, in the middle of black
    - ``"crop"``: the middle of the picture
    - ``"stretch"``: the whole picture, whatever becomes of its proportions
    - ``"exact"``: no picture is resized, one of another size is refused

    Raises ImageError for a picture that cannot be read or does not fit, and ShapeError for a shape
    that no picture has, and SettingError for a fitting that there is not.
    """
    require_picture_shape(shape)
    fit = fitting_called(fitting)
    pixels = _pixels(picture, most_pixels)
    if shape[2:] != (3,):
        pixels = grey(pixels)
    try:
        fitted = fit(pixels, *shape[:2])
    except ImageError as error:  # pixels have no name
        name = "picture" if isinstance(picture, np.ndarray) else name_of(picture)
        raise ImageError(f"{name}: {error}") from error
    return fitted.reshape(shape, copy=False)


def _pixels(picture: Source | NDArray[np.uint8], most_pixels: int) -> Pixels:
    """The picture in colour, (H, W, 3)."""
    if not isinstance(picture, np.ndarray):
        return load_image(picture, most_pixels=most_pixels)
    shape = picture.shape
    if picture.dtype != np.uint8 or len(shape) not in (2, 3) or shape[2:] not in ((), (1,), (3,)):
        raise ImageError(
            f"pixels of shape {shape} and dtype {picture.dtype}; expected (H, W), (H, W, 1) or "
            f"(H, W, 3) uint8"
        )
    if not picture.size:
        raise ImageError(f"pixels of shape {shape}; expected at least one")
    return np.broadcast_to(picture.reshape(*shape[:2], -1, copy=False), (*shape[:2], 3))


def require_picture_shape(shape: tuple[int, ...]) -> None:
    """Raises ShapeError for the inputs of a net that takes no pictures."""
    if not is_picture_shape(shape):
        raise ShapeError(
            f"a net whose inputs are of shape {shape} takes no pictures; expected (H, W), "
            f"(H, W, 1) or (H, W, 3)"
        )


class PictureInputs:
    """Makes a model's inputs of pictures.

    A model of float32 inputs is given pictures as Darknet's nets are, by ``letterbox``; one of
    uint8, as recipes are, by ``fit_picture``. Raises ShapeError for a model that takes none.
    """

    def __init__(self, model: Model, most_pixels: int = MOST_PIXELS, fitting: str = "pad") -> None:
        require_picture_shape(model.input_shape)
        self._shape = model.input_shape
        self._is_darknet = model.input_dtype == np.float32
        fitting_called(fitting)
        self._fitting = fitting
        self._most_pixels = most_pixels

    def of(self, picture: Source) -> NDArray[np.generic]:
        """The picture as the model takes it; raises ImageError where it cannot be."""
        if not self._is_darknet:
            return fit_picture(picture, self._shape, self._fitting, self._most_pixels)
        pixels = load_image(picture, most_pixels=self._most_pixels)
        if self._shape[2:] != (3,):
            pixels = grey(pixels)
        try:
            return letterbox(pixels, *self._shape[:2]).reshape(self._shape, copy=False)
        except ImageError as error:  # pixels have no name
            raise ImageError(f"{name_of(picture)}: {error}") from error
