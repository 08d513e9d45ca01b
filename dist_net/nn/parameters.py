"""Parameters and buffers: where layers declare them, and how they lie in one flat vector.

A network is a function of an input and a *scope*. Calling it once with a fresh scope shows which
parameters it has, and which buffers: moving averages of what it sees in training. In the order of
that call they are laid out, end to end, in one contiguous float32 vector, the parameters first.
A gradient is a vector of the same layout: where the buffers lie, it holds what was observed in
the minibatch, towards which the update moves them. Layers hold no arrays.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from copy import copy
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from dist_net.autodiff import Expression, variable
from dist_net.autodiff.expression import Variable
from dist_net.errors import ParameterError, ShapeError
from dist_net.nn.initializers import Initializer
from dist_net.vector import Vector

Declared = TypeVar("Declared")


@dataclass(frozen=True)
class Parameter:
    """A named trained array: what it is called, its shape, how it begins."""

    name: str
    shape: tuple[int, ...]
    initializer: Initializer

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Buffer(Parameter):
    """A named untrained array: a moving average, moving ← momentum·moving + (1-momentum)·new."""

    momentum: float


BatchNormMode = Literal["batch", "frozen", "fixed"]
"""The statistics are the batch's, or stay as they are; "fixed": so do gamma and beta."""


class Scope:
    """What a layer is called with: the place of its parameters, and whether this is training.

    ``generator`` is where layers that draw random numbers in training take them from.
    ``batch_norm`` is what batch norm does in training: see ``BatchNormMode``.
    """

    def __init__(self, training: bool = False, generator: np.random.Generator | None = None):
        self.training = training
        self.generator = generator if generator is not None else np.random.default_rng()
        self.batch_norm: BatchNormMode = "batch"
        self.parameters: dict[str, Parameter] = {}
        self.variables: dict[str, Expression] = {}
        self.buffers: dict[str, Buffer] = {}
        self.observed: dict[str, Expression] = {}
        self._prefix = ""
        self._children: dict[str, int] = {}

    def parameter(self, name: str, shape: tuple[int, ...], initializer: Initializer) -> Expression:
        """Declares a parameter of the current layer and gives the variable that stands for it.

        Raises ParameterError if the layer has one of that name already.
        """
        full_name = self._new_name(name)
        place = variable(full_name, shape)
        self.parameters[full_name] = Parameter(full_name, place.shape, initializer)
        self.variables[full_name] = place
        return place

    def buffer(
        self, name: str, shape: tuple[int, ...], initializer: Initializer, momentum: float = 0.9
    ) -> Expression:
        """Declares a buffer of the current layer and gives the variable that stands for it.

        It is a moving average of what ``observe`` is told. Raises ParameterError if the layer has
        one of that name already, or for a momentum outside [0, 1).
        """
        if not 0 <= momentum < 1:
            raise ParameterError(f"buffer {name!r}: momentum {momentum}; expected 0 <= it < 1")
        full_name = self._new_name(name)
        place = variable(full_name, shape)
        self.buffers[full_name] = Buffer(full_name, place.shape, initializer, momentum)
        return place

    def observe(self, buffer: Expression, value: Expression) -> None:
        """Says what ``buffer``, a variable that ``buffer()`` gave, is the moving average of.

        ``value`` is computed at each training step, and then the buffer moves towards it; one
        that is not observed stays as it is. Raises ParameterError if ``buffer`` is none or was
        observed before, and ShapeError if ``value`` is of another shape or dtype.
        """
        name = buffer.operation.name if isinstance(buffer.operation, Variable) else ""
        if name not in self.buffers or name in self.observed:
            raise ParameterError(
                f"observe: {buffer} is no buffer of this network, or it is observed twice; "
                f"expected a variable that buffer() gave, once"
            )
        if (value.shape, value.dtype) != (buffer.shape, buffer.dtype):
            raise ShapeError(f"observe: {value} for {buffer}; expected the same shape and dtype")
        self.observed[name] = value

    def _new_name(self, name: str) -> str:
        full_name = self._prefix + name
        self._require_new(full_name)
        return full_name

    def _require_new(self, full_name: str) -> None:
        if full_name in self.parameters or full_name in self.buffers:
            raise ParameterError(f"parameter {full_name!r} is declared twice; name them apart")

    def beside(self) -> Scope:
        """A scope at the same place with nothing declared in it; see ``take_over``."""
        other = Scope(self.training, self.generator)
        other.batch_norm = self.batch_norm
        other._prefix = self._prefix
        return other

    def with_batch_norm(self, mode: BatchNormMode) -> Scope:
        """The same scope, in which batch norm does this in training."""
        other = copy(self)
        other.batch_norm = mode
        return other

    def take_over(self, other: Scope, names: Set[str]) -> None:
        """Declares what ``other`` has declared by these full names, and observes the same.

        Raises ParameterError if one of them is declared here already.
        """
        for name in names & (other.parameters.keys() | other.buffers.keys()):
            self._require_new(name)
        self.parameters |= _of(other.parameters, names)
        self.variables |= _of(other.variables, names)
        self.buffers |= _of(other.buffers, names)
        self.observed |= _of(other.observed, names)

    def child(self, name: str) -> Scope:
        """The scope of a layer inside this one: ``name``, ``name_1``, and so on."""
        count = self._children.get(name, 0)
        self._children[name] = count + 1
        inner = copy(self)
        inner._children = {}
        inner._prefix = f"{self._prefix}{name}_{count}/" if count else f"{self._prefix}{name}/"
        return inner


def _of(declared: Mapping[str, Declared], names: Set[str]) -> dict[str, Declared]:
    return {name: each for name, each in declared.items() if name in names}


class Layout:
    """Parameters end to end in one flat vector, and after them the buffers.

    ``trained_size`` elements are the parameters', ``size`` all of them.
    """

    def __init__(
        self, parameters: Mapping[str, Parameter], buffers: Mapping[str, Buffer] | None = None
    ) -> None:
        self.parameters = tuple(parameters.values())
        self.buffers = tuple(buffers.values()) if buffers is not None else ()
        self.shapes = tuple((each.name, each.shape) for each in self._arrays)
        self.momenta = tuple(each.momentum for each in self.buffers)
        self.trained_size = sum(each.size for each in self.parameters)
        self.size = sum(each.size for each in self._arrays)

    @property
    def _arrays(self) -> tuple[Parameter, ...]:
        return self.parameters + self.buffers

    def views(self, vector: Vector) -> dict[str, Vector]:
        """Each parameter's and buffer's part of ``vector`` in its own shape; memory is shared."""
        if vector.shape != (self.size,):
            raise ParameterError(
                f"a vector of shape {vector.shape} for a network of {self.size} parameters"
            )
        ends = np.cumsum([each.size for each in self._arrays])
        return {
            each.name: vector[end - each.size : end].reshape(each.shape, copy=False)
            for each, end in zip(self._arrays, ends, strict=True)
        }

    def initial(self, generator: np.random.Generator) -> Vector:
        """A new vector with everything's first values, drawn in order."""
        vector = np.empty(self.size, np.float32)
        for each, view in zip(self._arrays, self.views(vector).values(), strict=True):
            view[...] = each.initializer(generator, each.shape)
        return vector
