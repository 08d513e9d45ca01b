"""Resizing of decoded images to a network's inputs, as nodes of a graph.

The same as ``dist_net.images.fitting``. ONNX leaves the rounding of resized pixels to the program
that runs the graph: ONNX Runtime's pixels differ from Pillow's by at most 2 of 255, and most are
equal. Darknet's letterbox differs in the last row, which the reference leaves almost black at some
sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from dist_net.autodiff import Array
from dist_net.export.onnx.translation import (
    CHANNELS_LAST,
    CHANNELS_SECOND,
    Attribute,
    Graph,
    integers,
)
from dist_net.nn import Model

LUMA = np.array([19595, 38470, 7471], np.int32)
"""The shares of red, green and blue in grey (ITU-R BT.601), in 65536ths, as in Pillow."""

LINEAR: dict[str, Attribute] = {"mode": "linear", "antialias": 1, "exclude_outside": 1}
CUBIC: dict[str, Attribute] = LINEAR | {"mode": "cubic", "cubic_coeff_a": -0.5}
"""Pillow's filters: antialiased, without pixels from outside the map."""

Fit = Callable[[Graph, str, int, int], str]
"""From maps (N, C, H, W) uint8 of any size to (N, C, height, width)."""


def add_preprocessing(graph: Graph, model: Model, fitting: str) -> str:
    """Add the input ``images``, (N, H, W, 3) uint8 of any size; return the network's inputs.

    ``fitting`` is a key of ``GRAPH_FITTINGS``.
    """
    height, width, *channels = model.input_shape
    size: tuple[int | str, int | str] = (height, width) if fitting == "exact" else ("H", "W")
    pixels = graph.input("images", np.uint8, ("N", *size, 3))
    if channels != [3]:
        pixels = _grey(graph, pixels)
    maps = graph.transposed(pixels, CHANNELS_SECOND)
    fitted = GRAPH_FITTINGS[fitting](graph, maps, height, width)
    if channels:
        return graph.transposed(fitted, CHANNELS_LAST)
    return graph.add("Squeeze", fitted, integers(1))


def _grey(graph: Graph, pixels: str) -> str:
    shares = graph.add("Mul", graph.cast(pixels, np.int32), LUMA)
    luma = graph.add("ReduceSum", shares, integers(3), keepdims=1)
    rounded = graph.add("Add", luma, np.array(1 << 15, np.int32))
    return graph.cast(graph.add("Div", rounded, np.array(1 << 16, np.int32)), np.uint8)


def _pad(graph: Graph, maps: str, height: int, width: int) -> str:
    size, target = _shape(graph, maps, 2, 4), integers(height, width)
    ratios = graph.add("Div", target.astype(np.float64), graph.cast(size, np.float64))
    scale = graph.add("ReduceMin", ratios, keepdims=1)
    scaled = graph.add("Round", graph.add("Mul", graph.cast(size, np.float64), scale))
    inner = graph.add("Max", graph.cast(scaled, np.int64), integers(1))
    zero = np.array(0, np.uint8)
    return _in_the_middle(graph, _resized(graph, maps, inner), inner, target, zero)


def _crop(graph: Graph, maps: str, height: int, width: int) -> str:
    target = integers(height, width)
    wanted = target.astype(np.float64)
    ratios = graph.add("Div", wanted, graph.cast(_shape(graph, maps, 2, 4), np.float64))
    scale = graph.add("ReduceMax", ratios, keepdims=1)
    kept = graph.cast(graph.add("Round", graph.add("Div", wanted, scale)), np.int64)
    return _resized(graph, _middle(graph, maps, kept), target)


def _imagenet(graph: Graph, maps: str, height: int, width: int) -> str:
    down, across = _shape(graph, maps, 2, 3), _shape(graph, maps, 3, 4)
    by_height = graph.add("Mul", down, integers(7, 7 * width))
    by_height = graph.add("Div", by_height, integers(8, 8 * height))
    by_width = graph.add("Mul", across, integers(7 * height, 7))
    by_width = graph.add("Div", by_width, integers(8 * width, 8))
    is_wide = graph.add(
        "Greater",
        graph.add("Mul", across, integers(height)),
        graph.add("Mul", down, integers(width)),
    )
    kept = graph.add("Where", is_wide, by_height, by_width)
    return _resized(graph, _middle(graph, maps, kept), integers(height, width), CUBIC)


def _letterbox(graph: Graph, maps: str, height: int, width: int) -> str:
    size, target = _shape(graph, maps, 2, 4), integers(height, width)
    down, across = _shape(graph, maps, 2, 3), _shape(graph, maps, 3, 4)
    to_width = graph.add("Div", graph.add("Mul", size, integers(width)), across)
    to_height = graph.add("Div", graph.add("Mul", size, integers(height)), down)
    is_wide = graph.add(
        "Less",
        graph.add("Div", np.array([width], np.float32), graph.cast(across, np.float32)),
        graph.add("Div", np.array([height], np.float32), graph.cast(down, np.float32)),
    )
    inner = graph.add("Where", is_wide, to_width, to_height)
    values = graph.add("Div", graph.cast(maps, np.float32), np.array(255, np.float32))
    how = {"mode": "linear", "coordinate_transformation_mode": "align_corners"}
    resized = _resized(graph, values, inner, how)
    return _in_the_middle(graph, resized, inner, target, np.array(0.5, np.float32))


GRAPH_FITTINGS: dict[str, Fit] = {
    "pad": _pad,
    "crop": _crop,
    "stretch": lambda graph, maps, *size: _resized(graph, maps, integers(*size)),
    "exact": lambda _graph, maps, *_size: maps,
    "imagenet": _imagenet,
    "letterbox": _letterbox,
}
"""The fittings of recipes by name, and that of Darknet's nets."""


def _resized(
    graph: Graph, maps: str, size: str | Array, how: Mapping[str, Attribute] = LINEAR
) -> str:
    """Resize to (height, width), by default like Pillow's bilinear filter."""
    shape = graph.add("Concat", _shape(graph, maps, 0, 2), size, axis=0)
    return graph.add("Resize", maps, "", "", shape, **how)


def _middle(graph: Graph, maps: str, kept: str) -> str:
    """Return the central ``kept`` rows and columns of the maps, at least one of each."""
    size = _shape(graph, maps, 2, 4)
    kept = graph.add("Min", graph.add("Max", kept, integers(1)), size)
    start = _half_of_difference(graph, size, kept)
    return graph.add("Slice", maps, start, graph.add("Add", start, kept), integers(2, 3))


def _in_the_middle(graph: Graph, maps: str, inner: str, target: Array, value: Array) -> str:
    """Pad maps of size ``inner`` with ``value`` on all sides."""
    before = _half_of_difference(graph, target, inner)
    after = graph.add("Sub", graph.add("Sub", target, inner), before)
    none = integers(0, 0)
    return graph.add("Pad", maps, graph.add("Concat", none, before, none, after, axis=0), value)


def _half_of_difference(graph: Graph, larger: str | Array, smaller: str) -> str:
    return graph.add("Div", graph.add("Sub", larger, smaller), integers(2))


def _shape(graph: Graph, maps: str, start: int, end: int) -> str:
    """Return the shape of (N, C, H, W) from axis ``start`` to ``end``."""
    return graph.add("Shape", maps, start=start, end=end)
