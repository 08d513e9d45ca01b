"""Pictures as the inputs of a model: which models take them, and how they are made to fit."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dist_net.darknet.images import (
    MOST_PIXELS,
    Source,
    fit,
    grey,
    letterbox,
    load_image,
    name_of,
)
from dist_net.errors import ImageError, ShapeError
from dist_net.nn import Model


def takes_pictures(model: Model) -> bool:
    """Whether its inputs are (H, W), (H, W, 1), and then pictures are made grey, or (H, W, 3)."""
    shape = model.input_shape
    return len(shape) in (2, 3) and shape[2:] in ((), (1,), (3,))


class PictureInputs:
    """Makes a model's inputs of pictures.

    A model of float32 inputs is given pictures as Darknet's nets are, by ``letterbox``; one of
    uint8 as recipes are, by ``fit``. Raises ShapeError for a model that takes none.
    """

    def __init__(self, model: Model, most_pixels: int = MOST_PIXELS) -> None:
        if not takes_pictures(model):
            raise ShapeError(
                f"a net whose inputs are of shape {model.input_shape} takes no pictures; expected "
                f"(H, W), (H, W, 1) or (H, W, 3)"
            )
        self._shape = model.input_shape
        self._fitted = letterbox if model.input_dtype == np.float32 else fit
        self._most_pixels = most_pixels

    def of(self, picture: Source) -> NDArray[np.generic]:
        """The picture as the model takes it; raises ImageError where it cannot be."""
        pixels = load_image(picture, most_pixels=self._most_pixels)
        if self._shape[2:] != (3,):
            pixels = grey(pixels)
        try:
            return self._fitted(pixels, *self._shape[:2]).reshape(self._shape, copy=False)
        except ImageError as error:  # pixels have no name
            raise ImageError(f"{name_of(picture)}: {error}") from error
