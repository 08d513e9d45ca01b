"""The layers of a .cfg file that refer to earlier ones: ``[route]`` and ``[shortcut]``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dist_net.autodiff import Expression, broadcast_to, concatenate, constant, part, reshape
from dist_net.darknet.configuration import Section
from dist_net.darknet.layers import Weightless, activation
from dist_net.errors import ShapeError
from dist_net.nn import Scope
from dist_net.nn.activations import Activation


def _absolute(section: Section, option: str, value: int, index: int) -> int:
    """The number of the layer that ``value`` means in layer ``index``: -1 is the one before."""
    if index == 0:
        raise section.error(f"{option}={value}: the first layer has no layer before it", option)
    found = index + value if value < 0 else value
    if not 0 <= found < index:
        raise section.error(
            f"{option}={value}: expected -{index} to -1, or 0 to {index - 1}, in layer {index}",
            option,
        )
    return found


@dataclass(frozen=True)
class Route(Weightless):
    """``[route]``: the channels of earlier layers, one after the other."""

    layers: tuple[int, ...]

    @classmethod
    def of(cls, section: Section, index: int) -> Route:
        """The layer of this section."""
        values = section.integers("layers")
        return cls(tuple(_absolute(section, "layers", value, index) for value in values))

    def __call__(self, x: Expression, scope: Scope, earlier: Sequence[Expression]) -> Expression:
        maps = [earlier[layer] for layer in self.layers]
        if len({each.shape[:3] for each in maps}) > 1:
            sizes = ", ".join(f"{each.shape[1]} x {each.shape[2]}" for each in maps)
            raise ShapeError(f"the maps of layers {list(self.layers)} are {sizes}: expected equal")
        return maps[0] if len(maps) == 1 else concatenate(maps, 3)


@dataclass(frozen=True)
class Shortcut(Weightless):
    """``[shortcut]``: activation(alpha · x + beta · the output of layer ``origin``).

    Where those two differ in shape, Darknet lets only the channels that both have take part; of
    a larger map every nth pixel is added, and a smaller one is added to every nth pixel. What
    takes no part stays as it is in x.
    """

    origin: int
    alpha: float
    beta: float
    activation: Activation

    @classmethod
    def of(cls, section: Section, index: int) -> Shortcut:
        """The layer of this section."""
        if "from" not in section.options:
            raise section.error("has no option from, which says what to add")
        return cls(
            _absolute(section, "from", section.integers("from")[0], index),
            section.number("alpha", 1.0),
            section.number("beta", 1.0),
            activation(section, "linear"),
        )

    def __call__(self, x: Expression, scope: Scope, earlier: Sequence[Expression]) -> Expression:
        added = earlier[self.origin]
        if added.shape != x.shape:
            if self.alpha != 1:
                raise ShapeError(
                    f"alpha={self.alpha} for maps of {_size(x)} and {_size(added)}: expected 1 "
                    f"where the shapes differ"
                )
            added = _fitted(added, x)
        x = x if self.alpha == 1 else x * self.alpha
        return self.activation(x + (added if self.beta == 1 else added * self.beta))


def _fitted(added: Expression, x: Expression) -> Expression:
    """``added`` in the shape of ``x``, 0 where it has nothing to add."""
    scales = [_scale(added.shape[axis], x.shape[axis]) for axis in (1, 2)]
    if scales[0] != scales[1]:
        raise ShapeError(
            f"maps of {_size(x)} and {_size(added)}: expected rows and columns in one ratio"
        )
    every, apart = scales[0]
    for axis in (1, 2):
        kept = min(added.shape[axis], x.shape[axis])
        added = _spread(_every(added, axis, every, kept), axis, apart)
    added = part(added, 3, 0, min(added.shape[3], x.shape[3]))
    for axis in (1, 2, 3):
        added = _padded(added, axis, x.shape[axis])
    return added


def _size(x: Expression) -> str:
    return " x ".join(map(str, x.shape[1:]))


def _scale(added: int, length: int) -> tuple[int, int]:
    """Every how many pixels of ``added`` count, and how far apart they come."""
    return max(added // length, 1), max(length // added, 1)


def _every(x: Expression, axis: int, step: int, count: int) -> Expression:
    """The first of each ``step`` places along an axis, ``count`` of them."""
    if step == 1:
        return part(x, axis, 0, count)
    before, after = x.shape[:axis], x.shape[axis + 1 :]
    grouped = reshape(part(x, axis, 0, count * step), (*before, count, step, *after))
    return reshape(part(grouped, axis + 1, 0, 1), (*before, count, *after))


def _spread(x: Expression, axis: int, step: int) -> Expression:
    """Each place of an axis, and ``step`` - 1 zeros after it."""
    if step == 1:
        return x
    before, count, after = x.shape[:axis], x.shape[axis], x.shape[axis + 1 :]
    apart = _padded(reshape(x, (*before, count, 1, *after)), axis + 1, step)
    return reshape(apart, (*before, count * step, *after))


def _padded(x: Expression, axis: int, length: int) -> Expression:
    """Zeros after the end of an axis, up to ``length``, or nothing but the first ``length``."""
    missing = length - x.shape[axis]
    if missing <= 0:
        return part(x, axis, 0, length)
    shape = (*x.shape[:axis], missing, *x.shape[axis + 1 :])
    return concatenate([x, broadcast_to(constant(0.0, x.dtype), shape)], axis)
