"""Parameters and buffers: their declaration by layers and their layout in one flat vector.

A network is a function of an input and a *scope*. A call with a new scope declares the network's
parameters and its buffers, which are moving averages of values that layers observe in training.
One contiguous float32 vector holds them in the order of declaration, parameters first. A gradient
has the same layout; in the buffers' places it holds the observations of the minibatch, towards
which an update moves the buffers. Layers hold no arrays.

An initializer takes a generator and a shape and returns a float32 array. The last axis is the
output axis, the second to last the input axis, and any preceding axes are a window (HWIO).
"""

import math
from collections.abc import Callable, Mapping, Set
from copy import copy
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from dist_net.autodiff import Expression, variable
from dist_net.autodiff.expression import Variable
from dist_net.errors import ParameterError, ShapeError
from dist_net.ground.vector import Vector, views_of

Values = NDArray[np.float32]
Initializer = Callable[[np.random.Generator, tuple[int, ...]], Values]


def fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return fan_in (inputs summed per output) and fan_out (outputs fed per input)."""
    if len(shape) < 2:
        raise ShapeError(f"a fan-based initializer needs two axes or more, got shape {shape}")
    window = math.prod(shape[:-2])
    return window * shape[-2], window * shape[-1]


def glorot_uniform(generator: np.random.Generator, shape: tuple[int, ...]) -> Values:
    """Uniform within ±sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio 2010)."""
    return _uniform(generator, shape, math.sqrt(6.0 / sum(fans(shape))))


def he_uniform(generator: np.random.Generator, shape: tuple[int, ...]) -> Values:
    """Uniform within ±sqrt(6 / fan_in), for layers before a relu (He et al. 2015)."""
    return _uniform(generator, shape, math.sqrt(6.0 / fans(shape)[0]))


def he_normal(generator: np.random.Generator, shape: tuple[int, ...]) -> Values:
    """Normal with standard deviation sqrt(2 / fan_in), for layers before a relu."""
    deviation = np.float32(math.sqrt(2.0 / fans(shape)[0]))
    return generator.standard_normal(shape, dtype=np.float32) * deviation


def small_normal(generator: np.random.Generator, shape: tuple[int, ...]) -> Values:
    """Normal with standard deviation 0.02, usual for an embedding."""
    return generator.standard_normal(shape, dtype=np.float32) * np.float32(0.02)


def zeros(generator: np.random.Generator, shape: tuple[int, ...]) -> Values:  # noqa: ARG001
    return np.zeros(shape, np.float32)


def ones(generator: np.random.Generator, shape: tuple[int, ...]) -> Values:  # noqa: ARG001
    return np.ones(shape, np.float32)


def copy_of(values: NDArray[np.floating]) -> Initializer:
    """Return an initializer that copies ``values``, for parameters that are already trained."""

    def copy(generator: np.random.Generator, shape: tuple[int, ...]) -> Values:  # noqa: ARG001
        if values.shape != shape:
            raise ShapeError(f"copy_of: values of shape {values.shape} for a parameter of {shape}")
        return values.astype(np.float32)

    return copy


def _uniform(generator: np.random.Generator, shape: tuple[int, ...], limit: float) -> Values:
    return (generator.random(shape, dtype=np.float32) * 2 - 1) * np.float32(limit)


@dataclass(frozen=True)
class Parameter:
    """A trained array: its name, its shape and its initializer."""

    name: str
    shape: tuple[int, ...]
    initializer: Initializer

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Buffer(Parameter):
    """An untrained array: a moving average, moving ← momentum·moving + (1-momentum)·new.

    A momentum of 1 makes it constant, as the parameters and buffers of ``Frozen`` layers are.
    """

    momentum: float


BatchNormMode = Literal["batch", "frozen", "fixed"]
"""The statistics that batch norm uses in training. "batch": the batch's mean and variance.
"frozen": its buffers. "fixed": its buffers, and gamma and beta are frozen too."""


class Scope:
    """The context of a layer's call: the declarations of parameters, and the mode of training.

    Layers that need random numbers in training draw them from ``generator``. ``batch_norm``: see
    ``BatchNormMode``. ``in_parts``: the batch is a part of a minibatch; see ``MeanOfParts``.
    """

    def __init__(self, training: bool = False, generator: np.random.Generator | None = None):
        self.training, self.in_parts = training, False
        self.generator = generator if generator is not None else np.random.default_rng()
        self.batch_norm: BatchNormMode = "batch"
        self.is_frozen = False
        self.parameters: dict[str, Parameter] = {}
        self.variables: dict[str, Expression] = {}
        self.buffers: dict[str, Buffer] = {}
        self.observed: dict[str, Expression] = {}
        self.outputs: list[tuple[str, Expression]] = []
        """The prefix of each layer of a ``Sequential``, and its output."""
        self.prefix = ""
        self._children: dict[str, int] = {}
        self._owner: tuple[str, object] = "", None  # the layer that declares, and its prefix
        self._is_again = False  # whether it is used again, with its first parameters
        self._owners: dict[int, tuple[str, object]] = {}

    def parameter(self, name: str, shape: tuple[int, ...], initializer: Initializer) -> Expression:
        """Declare a parameter of the current layer and return its variable.

        A layer object that is used again gets its first variables. Raise ``ParameterError`` if the
        layer already has a parameter of that name, or is frozen in one place only.
        """
        known = (self.buffers if self.is_frozen else self.parameters).get(self.prefix + name)
        if self._is_again and known is not None and known.shape == shape:
            return variable(known.name, shape)
        if self.is_frozen:
            return self.buffer(name, shape, initializer)
        full_name = self._new_name(name)
        place = variable(full_name, shape)
        self.parameters[full_name] = Parameter(full_name, place.shape, initializer)
        self.variables[full_name] = place
        return place

    def buffer(
        self, name: str, shape: tuple[int, ...], initializer: Initializer, momentum: float = 0.9
    ) -> Expression:
        """Declare a buffer of the current layer and return its variable.

        It is a moving average of the values passed to ``observe``. Raise ``ParameterError`` if the
        layer already has one of that name, or for a momentum outside [0, 1).
        """
        if not 0 <= momentum < 1:
            raise ParameterError(
                f"buffer {name!r}: momentum {momentum}; expected 0 <= momentum < 1"
            )
        full_name = self._new_name(name)
        place = variable(full_name, shape)
        momentum = 1.0 if self.is_frozen else momentum
        self.buffers[full_name] = Buffer(full_name, place.shape, initializer, momentum)
        return place

    def observe(self, buffer: Expression, value: Expression) -> None:
        """Make ``buffer``, a variable returned by ``buffer()``, the moving average of ``value``.

        Each training step computes ``value`` and moves the buffer towards it; a buffer that is not
        observed keeps its value. Raise ``ParameterError`` if ``buffer`` is not a buffer of this
        scope or was already observed, ``ShapeError`` if ``value`` has another shape or dtype.
        """
        name = buffer.operation.name if isinstance(buffer.operation, Variable) else ""
        if name not in self.buffers or name in self.observed:
            raise ParameterError(
                f"observe: {buffer} is not a buffer of this network, or is observed twice; "
                f"expected a variable returned by buffer(), once"
            )
        if (value.shape, value.dtype) != (buffer.shape, buffer.dtype):
            raise ShapeError(f"observe: {value} for {buffer}; expected the same shape and dtype")
        self.observed[name] = value

    def _new_name(self, name: str) -> str:
        self._owners.setdefault(id(self._owner[1]), self._owner)
        full_name = self.prefix + name
        if full_name in self.parameters or full_name in self.buffers:
            raise ParameterError(
                f"parameter {full_name!r} is declared twice; use another name, or another layer "
                f"object if its shape differs, it has buffers, or it is Frozen in one place only"
            )
        return full_name

    def with_batch_norm(self, mode: BatchNormMode, is_frozen: bool = False) -> Self:
        """Return this scope with another ``batch_norm``, and with constant parameters if frozen."""
        other = copy(self)
        other.batch_norm, other.is_frozen = mode, self.is_frozen or is_frozen
        return other

    def forget(self, names: Set[str]) -> None:
        """Remove the declarations and observations with these full names."""
        for declared in (self.parameters, self.variables, self.buffers, self.observed):
            for name in names & declared.keys():
                del declared[name]

    def child(self, name: str, layer: object = None) -> Self:
        """Return a layer's scope: ``name``, ``name_1``, ...; with parameters, its first scope."""
        count = self._children.get(name, 0)
        self._children[name] = count + 1
        inner = copy(self)
        inner._children = {}
        if layer is not None and id(layer) in self._owners:
            inner._owner = self._owners[id(layer)]
            inner.prefix, inner._is_again = inner._owner[0], True
            return inner
        inner.prefix = f"{self.prefix}{name}_{count}/" if count else f"{self.prefix}{name}/"
        if layer is not None:
            inner._owner = inner.prefix, layer
        return inner


class Layout:
    """The positions of parameters, ``trained_size`` numbers, then buffers: ``size`` in all."""

    def __init__(
        self, parameters: Mapping[str, Parameter], buffers: Mapping[str, Buffer] | None = None
    ) -> None:
        self.parameters = tuple(parameters.values())
        self.buffers = tuple(buffers.values()) if buffers is not None else ()
        arrays = self.parameters + self.buffers
        self.shapes = tuple((each.name, each.shape) for each in arrays)
        self.momenta = tuple(float(each.momentum) for each in self.buffers)
        self.trained_size = sum(each.size for each in self.parameters)
        self.size = sum(each.size for each in arrays)

    def views(self, vector: Vector) -> dict[str, Vector]:
        """Return each parameter and buffer by name, as a view of ``vector`` in its own shape."""
        if vector.shape != (self.size,):
            raise ParameterError(
                f"a vector of shape {vector.shape} for a network of {self.size} parameters"
            )
        return views_of(vector, self.shapes)

    def initial(self, generator: np.random.Generator) -> Vector:
        """Return a new vector of initial values, drawn in the order of the layout."""
        vector = np.empty(self.size, np.float32)
        views = self.views(vector)
        for each in self.parameters + self.buffers:
            views[each.name][...] = each.initializer(generator, each.shape)
        return vector
