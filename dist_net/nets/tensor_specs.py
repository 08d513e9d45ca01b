"""The inputs and outputs of a model: names, types, shapes, and the bytes that carry them.

If rows are computed independently, a row is one record of NumPy: the bytes of several requests,
joined, are a batch. A single tensor's records are its rows, so that nothing is copied. The other
models receive the tensors of one request, with their shapes, in the format of safetensors.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from dist_net.errors import DTypeError, ShapeError

Tensors = dict[str, NDArray[Any]]

Inputs = NDArray[Any] | Mapping[str, NDArray[Any]]
"""The only input of a model, or its inputs by name."""

TYPE_CODES = {
    **{"BOOL": "?", "INT8": "b", "INT16": "h", "INT32": "i", "INT64": "q"},
    **{"UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q"},
    **{"FP16": "e", "FP32": "f", "FP64": "d"},
}
"""The codes of struct and NumPy by the Open Inference Protocol's name of a type; the prefix ``<``
makes them little-endian."""

INPUT = "input"
"""The name of the only input of a model of dist_net."""

DATATYPES = {np.dtype("<" + code): name for name, code in TYPE_CODES.items()}
MAX_RANK = 32
MAX_NAME = 1000  # characters


class TensorSpec(NamedTuple):
    """An input or output. ``shape`` excludes the axis of rows if the model is batched; a free axis
    is -1."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    @classmethod
    def parsed(cls, values: Sequence[Any]) -> Self:
        """Return a spec from JSON. Raise ValueError or TypeError."""
        name, datatype, shape = values
        if not isinstance(name, str) or len(name) > MAX_NAME or datatype not in TYPE_CODES:
            raise ValueError(f"a tensor {name!r:.80} of {datatype!r:.80}")
        if len(shape) > MAX_RANK or not all(type(size) is int and size >= -1 for size in shape):
            raise ValueError(f"a tensor of shape {shape!r:.80}")
        name.encode()  # raises ValueError for half a surrogate pair
        return cls(name, datatype, tuple(shape))

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype("<" + TYPE_CODES[self.datatype])

    def fits(self, shape: Sequence[int]) -> bool:
        """Return whether a tensor of this shape fits; a free axis has any length."""
        sizes = zip(shape, self.shape, strict=False)
        return len(shape) == len(self.shape) and all(own in (-1, size) for size, own in sizes)


Specs = tuple[TensorSpec, ...]


def fitting_inputs(
    inputs: Inputs, specs: Specs, is_batched: bool, model: str
) -> tuple[Tensors, int | None]:
    """Return the inputs of ``model`` by name, and the number of rows; None for one without axis.

    Of a batched model each has the axis of rows, which one row may lack. Fields of a structured
    array are inputs, too. Raise ShapeError, and DTypeError unless NumPy permits ``same_kind``.
    """
    given: Mapping[str, Any] = {specs[0].name: inputs}
    if isinstance(inputs, Mapping):
        given = inputs
    elif names := getattr(getattr(inputs, "dtype", None), "names", None):
        given = {name: inputs[name] for name in names}
    tensors = {name: np.asarray(each) for name, each in given.items()}
    shapes = {name: each.shape for name, each in tensors.items()}
    is_known = shapes.keys() == {each.name for each in specs}
    is_one = is_known and all(each.fits(shapes[each.name]) for each in specs)
    counts = {shape[:1] for shape in shapes.values()}
    is_batch = is_known and is_batched and len(counts) == 1 and () not in counts
    if not is_one and not (is_batch and all(each.fits(shapes[each.name][1:]) for each in specs)):
        expected = ", ".join(f"{each.name} {each.shape}" for each in specs)
        per_row = " for one row, or with an axis of rows before" * is_batched
        found = shapes if len(shapes) > 1 or not is_known else next(iter(shapes.values()))
        raise ShapeError(
            f"inputs of shape {found} for model {model!r}; expected {expected}{per_row}"
        )
    for each in specs:
        dtype = tensors[each.name].dtype
        if dtype != each.dtype and not np.can_cast(dtype, each.dtype, "same_kind"):
            raise DTypeError(
                f"inputs of {dtype} for model {model!r}; expected {each.dtype}. Convert them "
                f"to the range of the training data"
            )
    if is_one and is_batched:
        return {name: array[np.newaxis] for name, array in tensors.items()}, None
    return tensors, None if is_one else next(iter(counts))[0]


@lru_cache
def record_of(specs: Specs) -> np.dtype[Any]:
    return np.dtype([(each.name, each.dtype, each.shape) for each in specs])


def to_bytes(
    tensors: Mapping[str, NDArray[Any]], specs: Specs, is_batched: bool
) -> bytes | memoryview:
    """Return tensors as bytes, in the types of ``specs``; if batched, with equally many rows."""
    arrays = [np.asarray(tensors[each.name], each.dtype, order="C") for each in specs]
    if not is_batched:
        return save({each.name: array for each, array in zip(specs, arrays, strict=True)})
    if len(specs) == 1:
        return arrays[0].reshape(-1, copy=False).view(np.uint8).data
    records = np.empty(len(arrays[0]), record_of(specs))
    for spec, array in zip(specs, arrays, strict=True):
        records[spec.name] = array.reshape(len(records), *spec.shape, copy=False)
    return records.view(np.uint8).data


def from_bytes(payload: bytes | memoryview, specs: Specs, is_batched: bool) -> Tensors:
    """Return the tensors of ``to_bytes``, borrowed if batched. Raise ValueError for other bytes."""
    if is_batched:
        records = np.frombuffer(payload, record_of(specs))
        return {each.name: records[each.name] for each in specs}
    try:
        tensors = load(bytes(payload))
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"damaged tensors: {error}") from error
    dtypes = {name: array.dtype for name, array in tensors.items()}
    if dtypes != {each.name: each.dtype for each in specs}:
        raise ValueError(f"tensors of {dtypes}")
    return tensors
