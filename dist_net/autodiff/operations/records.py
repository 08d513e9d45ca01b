"""Records: several arrays with a value per sample as the fields of one, NumPy's structured array.

A model of several inputs reads the fields of its one input, and returns a record of its outputs.
"""

from __future__ import annotations

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
    """Arrays (N, ...) as the fields of a structured array (N,). It has no derivative."""

    names: tuple[str, ...]

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        shapes = {each.shape[:1] for each in inputs}
        if len(shapes) != 1 or () in shapes:
            found = {name: each.shape for name, each in zip(self.names, inputs, strict=True)}
            raise ShapeError(f"record: fields of shapes {found}; expected a common first axis")
        pairs = zip(self.names, inputs, strict=True)
        return shapes.pop(), np.dtype([(name, each.dtype, each.shape[1:]) for name, each in pairs])

    def bind(self, inputs: Sequence[Array], out: Array) -> Call:
        fields: Any = out
        pairs = zip(self.names, inputs, strict=True)
        return in_order([partial(np.copyto, fields[name], each) for name, each in pairs])


@dataclass(frozen=True)
class FieldOf(Operation):
    """A field of a record, copied: kernels need aligned, contiguous arrays."""

    name: str

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        (record,) = inputs
        if self.name not in (record.dtype.names or ()):
            raise DTypeError(
                f"{record} has no field {self.name!r}; expected one of {record.dtype.names}"
            )
        dtype, shape = field_types(record.dtype, ())[self.name]
        return record.shape + shape, dtype

    def bind(self, inputs: Sequence[Array], out: Array) -> Call:
        fields: Any = inputs[0]
        return partial(np.copyto, out, fields[self.name])


def field_types(dtype: np.dtype[Any], shape: Shape) -> dict[str, tuple[np.dtype[Any], Shape]]:
    """Return the dtype and shape of each field, or those given, called "", if there are none."""
    if dtype.names is None:
        return {"": (dtype, shape)}
    return {name: (dtype[name].base, dtype[name].shape) for name in dtype.names}


def record(**fields: Expression) -> Expression:
    """Return the fields, each (N, ...), as one structured expression (N,); ``x["name"]`` reads one.

    Raise ``ShapeError`` if their first axes differ.
    """
    return apply(RecordOf(tuple(fields)), *fields.values())


def field(x: Expression, name: str) -> Expression:
    """Return a field of a record; raise ``DTypeError`` if it has no such field."""
    if isinstance(x.operation, RecordOf) and name in x.operation.names:
        return x.inputs[x.operation.names.index(name)]
    return apply(FieldOf(name), x)
