"""Records: several arrays as the fields of one, as in NumPy's structured arrays.

A model of several inputs reads the fields of its one input, and returns a record of its outputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from dist_net.autodiff.arrays import Array, Call, Shape, in_order
from dist_net.autodiff.expression import Expression, Operation, apply
from dist_net.errors import DTypeError, ShapeError


@dataclass(frozen=True)
class RecordOf(Operation):
    """Arrays (N, ...) as the fields of a structured array (N,). Only ``field`` reads it."""

    names: tuple[str, ...]

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        fields = [(name, x.dtype, x.shape[1:]) for name, x in zip(self.names, inputs, strict=True)]
        lengths = {each.shape[:1] for each in inputs}
        if len(lengths) != 1 or () in lengths:
            raise ShapeError(f"record: fields {fields} of lengths {lengths}; expected one length")
        return lengths.pop(), np.dtype(fields)

    def bind(self, inputs: Sequence[Array], out: Any) -> Call:
        pairs = zip(self.names, inputs, strict=True)
        return in_order([partial(np.copyto, out[name], each) for name, each in pairs])


@dataclass(frozen=True)
class FieldOf(Operation):
    """A field of a record, copied: kernels need aligned, contiguous arrays."""

    name: str

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        (x,) = inputs
        fields = field_types(x.dtype, ())
        if self.name not in fields:
            raise DTypeError(f"{x} has no field {self.name!r}; expected one of {[*fields]}")
        dtype, shape = fields[self.name]
        return x.shape + shape, dtype

    def bind(self, inputs: Sequence[Any], out: Array) -> Call:
        return partial(np.copyto, out, inputs[0][self.name])


def field_types(dtype: np.dtype[Any], shape: Shape) -> dict[str, tuple[np.dtype[Any], Shape]]:
    """Return the dtype and shape of each field, or those given, called "", if there are none."""
    names = dtype.names or ()
    return {name: (dtype[name].base, dtype[name].shape) for name in names} or {"": (dtype, shape)}


def record(**fields: Expression) -> Expression:
    """Return fields (N, ...) as one expression (N,), for ``x["name"]``. Raise ``ShapeError``."""
    return apply(RecordOf(tuple(fields)), *fields.values())


def field(x: Expression, name: str) -> Expression:
    """Return a field of a record; raise ``DTypeError`` if it has no such field."""
    if isinstance(x.operation, RecordOf) and name in x.operation.names:
        return x.inputs[x.operation.names.index(name)]
    return apply(FieldOf(name), x)
