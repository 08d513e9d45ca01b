"""Arrays for packages that share no other module: flat vectors, and the arrays of callers."""

from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_net.errors import DatasetError

Vector = NDArray[np.float32]

ArrayShapes = tuple[tuple[str, tuple[int, ...]], ...]
"""Name and shape of every array, in the order of the flat vector."""

AVERAGE = "weight_average"
"""The name of the part of a training state that is the average of the weights."""


def views_of(vector: Vector, shapes: ArrayShapes) -> dict[str, Vector]:
    """Return each array by name, as a view of the flat ``vector`` in its own shape."""
    ends = np.cumsum([prod(shape) for _, shape in shapes])
    return {
        name: vector[end - prod(shape) : end].reshape(shape, copy=False)
        for (name, shape), end in zip(shapes, ends, strict=True)
    }


def array_of(values: Any, name: str) -> Any:
    """Return a DataFrame, a Series, a tensor or a list as an array; other objects as they are.

    Raise DatasetError for values that NumPy cannot convert, such as a sparse matrix.
    """
    kind, is_list = type(values).__name__, isinstance(values, list | tuple)
    if hasattr(values, "toarray"):
        raise DatasetError(
            f"{name}: a sparse {kind}; expected a dense array, as its toarray() returns"
        )
    if isinstance(values, np.ndarray) or not (is_list or hasattr(values, "__array__")):
        return values
    try:
        if is_list and any(hasattr(each, "__array__") for each in values[:1]):
            return np.stack([np.asarray(each) for each in values])
        return np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DatasetError(
            f"{name}: a {kind} that NumPy cannot convert ({error}); expected numbers, as many for "
            f"each sample; a tensor on the CPU, without gradients"
        ) from error
