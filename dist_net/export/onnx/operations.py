"""The ONNX operators of every operation that a network can contain at inference."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from dist_net.autodiff import Expression, Operation
from dist_net.autodiff.kernels.convolution.problem import LINEAR
from dist_net.autodiff.kernels.windows import AxisWindows, Windows
from dist_net.autodiff.operations import (
    convolution,
    elementwise,
    indexing,
    matmul,
    normalization,
    pooling,
    reduction,
    selection,
    shaping,
)
from dist_net.errors import ExportError
from dist_net.export.onnx import translation
from dist_net.export.onnx.translation import CHANNELS_LAST, CHANNELS_SECOND, Translation, integers

Converter = Callable[[Translation, Expression], str]

FILTER_AXES: translation.Axes = (3, 2, 0, 1)
"""(kh, kw, C / groups, O) as (O, C / groups, kh, kw)."""
BEFORE_THE_FIRST = -(2**63)
"""The end of a slice that goes backwards to the first element."""


def converter_of(node: Expression) -> Converter:
    """Return the function that adds the operators for a node; raise ``ExportError``."""
    operation = node.operation
    convert = CONVERTERS.get(operation) or CONVERTERS.get(type(operation))
    if convert is None:
        raise ExportError(
            f"ONNX has no operator for the operation {operation.label} of this network; expected "
            f"one of {', '.join(sorted(map(_label, CONVERTERS)))}"
        )
    return convert


def _label(key: Operation | type[Operation]) -> str:
    return key.label if isinstance(key, Operation) else key.__name__


# Element by element


def _by(operator: str, *attributes: str, **options: translation.Attribute) -> Converter:
    """Return the converter to an operator with these attributes of the operation, and options."""

    def convert(known: Translation, node: Expression) -> str:
        given = {name: getattr(node.operation, name) for name in attributes}
        return known.graph.add(operator, *map(known.named, node.inputs), **given, **options)

    return convert


def _square(known: Translation, node: Expression) -> str:
    x = known.named(node.inputs[0])
    return known.graph.add("Mul", x, x)


def _expm1(known: Translation, node: Expression) -> str:
    """Compute tanh(x / 2) · (exp(x) + 1), which is precise near 0."""
    x = known.named(node.inputs[0])
    half, one = (np.array(number, node.dtype) for number in (0.5, 1))
    add = known.graph.add
    of_half = add("Tanh", add("Mul", x, half))
    return add("Mul", of_half, add("Add", add("Exp", x), one))


def _log1p(known: Translation, node: Expression) -> str:
    """Compute log(1 + x), which loses digits of x near 0."""
    x = known.named(node.inputs[0])
    return known.graph.add("Log", known.graph.add("Add", x, np.array(1, node.dtype)))


def _leaky_relu(known: Translation, node: Expression) -> str:
    x, slope = known.named(node.inputs[0]), known.array(node.inputs[1])
    assert slope is not None
    return _with_slope(known, x, float(slope))


def _with_slope(known: Translation, x: str, slope: float) -> str:
    if slope == LINEAR:
        return x
    return known.graph.add("LeakyRelu", x, alpha=slope) if slope else known.graph.add("Relu", x)


def _mask(known: Translation, node: Expression) -> str:
    condition, x = map(known.named, node.inputs)
    return known.graph.add("Where", condition, x, np.array(0, node.dtype))


def _cast(known: Translation, node: Expression) -> str:
    """Convert to another dtype; ONNX does not require a check of indices."""
    return known.graph.cast(known.named(node.inputs[0]), node.dtype)


def _scale_and_shift(known: Translation, node: Expression) -> str:
    assert isinstance(node.operation, normalization.ScaleAndShift)
    shift, *terms = map(known.named, node.inputs)
    add = known.graph.add
    total = add("Mul", terms[0], terms[1])
    for x, scale in zip(terms[2::2], terms[3::2], strict=True):
        total = add("Add", total, add("Mul", x, scale))
    total = add("Add", total, shift)
    return add("Relu", total) if node.operation.rectifies else total


# Along axes


def _reduction(operator: str) -> Converter:
    def convert(known: Translation, node: Expression) -> str:
        assert isinstance(node.operation, reduction.Reduction)
        axes = integers(*node.operation.axes)
        return known.graph.add(operator, known.named(node.inputs[0]), axes, keepdims=1)

    return convert


def _cumsum(known: Translation, node: Expression) -> str:
    assert isinstance(node.operation, reduction.CumSum)
    axis = np.array(node.operation.axis)
    return known.graph.add("CumSum", known.named(node.inputs[0]), axis)


# Shapes


def _reshape(known: Translation, node: Expression) -> str:
    return known.reshaped(known.named(node.inputs[0]), known.lengths(node))


def _transpose(known: Translation, node: Expression) -> str:
    assert isinstance(node.operation, shaping.Transpose)
    return known.transposed(node.inputs[0], node.operation.axes)


def _broadcast(known: Translation, node: Expression) -> str:
    (x,) = node.inputs
    added = node.ndim - x.ndim
    stays = tuple(added + axis for axis, length in enumerate(known.lengths(x)) if length is None)
    return known.expanded(known.named(x), node, stays)


def _slice(known: Translation, node: Expression) -> str:
    assert isinstance(node.operation, shaping.Slice)
    (x,) = node.inputs
    tensor = known.named(x)
    if parts := _parts(known, node, x):
        ranges = parts.values()
        starts = integers(*(part.start for part in ranges))
        ends = integers(*(part.stop if part.stop >= 0 else BEFORE_THE_FIRST for part in ranges))
        steps = integers(*(part.step for part in ranges))
        tensor = known.graph.add("Slice", tensor, starts, ends, integers(*parts), steps)
    keeps_axes = all(isinstance(each, range) for each in node.operation.index)
    return tensor if keeps_axes else known.reshaped(tensor, known.lengths(node))


def _zeros_around(known: Translation, node: Expression) -> str:
    assert isinstance(node.operation, shaping.ZerosAround)
    index, lengths = node.operation.index, known.lengths(node)
    parts, tensor = _parts(known, node, node), known.named(node.inputs[0])
    if not all(isinstance(each, range) for each in index):
        inner = [len(parts[i]) if i in parts else length for i, length in enumerate(lengths)]
        tensor = known.reshaped(tensor, inner)
    before, after = [0] * node.ndim, [0] * node.ndim
    gathered = {}
    for axis, part in parts.items():
        length = lengths[axis]
        if length is None:
            raise _depends_on_count(node)
        if part.step == 1:
            before[axis], after[axis] = part.start, length - part.stop
        else:  # append one line of zeros, and gather it for all lines in between
            after[axis] = 1
            gathered[axis] = [part.index(i) if i in part else len(part) for i in range(length)]
    if parts:
        zero = np.array(0, node.dtype)
        tensor = known.graph.add("Pad", tensor, integers(*before, *after), zero)
    for axis, lines in gathered.items():
        tensor = known.graph.add("Gather", tensor, integers(*lines), axis=axis)
    return tensor


def _parts(known: Translation, node: Expression, whole: Expression) -> dict[int, range]:
    """Return the range of a slice along each axis of ``whole`` that it selects in part."""
    parts = {}
    ranges = zip(_ranges(node), _ranges(known.other(node)), strict=True)
    for axis, (part, other) in enumerate(ranges):
        lengths = whole.shape[axis], known.other(whole).shape[axis]
        if (part, other) != (range(lengths[0]), range(lengths[1])):
            if part != other:
                raise _depends_on_count(node)
            parts[axis] = part
    return parts


def _ranges(node: Expression) -> list[range]:
    """Return the range of a slice along each axis; a single index is a range of one."""
    assert isinstance(node.operation, shaping.Slice | shaping.ZerosAround)
    index = [each for each in node.operation.index if each is not None]
    return [range(each, each + 1) if isinstance(each, int) else each for each in index]


def _depends_on_count(node: Expression) -> ExportError:
    return ExportError(
        f"{node}: its range depends on the number of inputs; expected all of them, or the same "
        f"range for any number"
    )


# Windows


def _convolution(known: Translation, node: Expression) -> str:
    assert isinstance(node.operation, convolution.Conv2D)
    convolved = _convolved(known, node, node.operation.windows, node.operation.groups)
    return known.graph.transposed(convolved, CHANNELS_LAST)


def _fused_convolution(known: Translation, node: Expression) -> str:
    operation = node.operation
    assert isinstance(operation, convolution.FusedConvolution)
    epilogue = operation.epilogue
    _, _, bias, *residual = node.inputs
    biases = [bias] if np.any(known.array(bias)) else []
    y = _convolved(known, node, operation.windows, operation.groups, biases)
    y = _with_slope(known, y, epilogue.slope)
    for each in residual:
        y = known.graph.add("Add", y, known.transposed(each, CHANNELS_SECOND))
        y = _with_slope(known, y, epilogue.residual_slope)
    if epilogue.clips:
        bounds = (np.array(bound, node.dtype) for bound in (epilogue.low, epilogue.high))
        y = known.graph.add("Clip", y, *bounds)
    return known.graph.transposed(y, CHANNELS_LAST)


def _convolved(
    known: Translation,
    node: Expression,
    windows: Windows,
    groups: int,
    biases: Sequence[Expression] = (),
    operator: str = "Conv",
    **options: translation.Axes,
) -> str:
    x, filters, *_ = node.inputs
    (top, bottom), (left, right) = windows.padding
    return known.graph.add(
        operator,
        known.transposed(x, CHANNELS_SECOND),
        known.transposed(filters, FILTER_AXES),
        *map(known.named, biases),
        kernel_shape=windows.size,
        strides=windows.stride,
        dilations=windows.dilation,
        pads=(top, left, bottom, right),
        group=groups,
        **options,
    )


def _transposed_convolution(known: Translation, node: Expression) -> str:
    assert isinstance(node.operation, convolution.Conv2DInputGradient)
    windows = node.operation.windows
    of_windows = windows.padding, windows.extent, windows.stride
    sides = zip(node.operation.map_size, *of_windows, strict=True)
    beyond = tuple((n + sum(pad) - extent) % stride for n, pad, extent, stride in sides)
    groups = node.operation.groups
    convolved = _convolved(known, node, windows, groups, (), "ConvTranspose", output_padding=beyond)
    return known.graph.transposed(convolved, CHANNELS_LAST)


def _sum_of_windows(known: Translation, node: Expression) -> str:
    """Multiply the mean, padding included, by the number of elements."""
    sides, x = _sides(node)
    mean = _pooled(known, "AveragePool", sides, x, count_include_pad=1)
    size = math.prod(side.size for side in sides)
    return known.graph.add("Mul", mean, np.array(size, node.dtype))


def _sides(node: Expression) -> tuple[list[AxisWindows], Expression]:
    """Return the windows of a pool along one axis or both, and the pooled map."""
    (x,) = node.inputs
    assert isinstance(node.operation, pooling.WindowReduction)
    sides = [node.operation.windows]
    if isinstance(x.operation, type(node.operation)) and x.operation.windows.axis != sides[0].axis:
        sides.append(x.operation.windows)
        (x,) = x.inputs
    return sides, x


def _pooled(
    known: Translation, operator: str, sides: list[AxisWindows], x: Expression, **options: int
) -> str:
    size, stride, before, after = [1, 1], [1, 1], [0, 0], [0, 0]
    for side in sides:
        i = side.axis - 1
        size[i], stride[i], before[i] = side.size, side.stride, side.before
        reached = (side.results - 1) * side.stride + side.size
        after[i] = max(reached - side.before - side.length, 0)
    pooled = known.graph.add(
        operator,
        known.transposed(x, CHANNELS_SECOND),
        kernel_shape=tuple(size),
        strides=tuple(stride),
        pads=(*before, *after),
        **options,
    )
    return known.graph.transposed(pooled, CHANNELS_LAST)


CONVERTERS: dict[Operation | type[Operation], Converter] = {
    elementwise.add: _by("Add"),
    elementwise.subtract: _by("Sub"),
    elementwise.multiply: _by("Mul"),
    elementwise.divide: _by("Div"),
    elementwise.negative: _by("Neg"),
    elementwise.exp: _by("Exp"),
    elementwise.expm1: _expm1,
    elementwise.log: _by("Log"),
    elementwise.log1p: _log1p,
    elementwise.power: _by("Pow"),
    elementwise.absolute: _by("Abs"),
    elementwise.sign: _by("Sign"),
    elementwise.sin: _by("Sin"),
    elementwise.cos: _by("Cos"),
    elementwise.erf: _by("Erf"),
    elementwise.sqrt: _by("Sqrt"),
    elementwise.square: _square,
    elementwise.tanh: _by("Tanh"),
    elementwise.sigmoid: _by("Sigmoid"),
    elementwise.less: _by("Less"),
    elementwise.less_equal: _by("LessOrEqual"),
    elementwise.greater: _by("Greater"),
    elementwise.greater_equal: _by("GreaterOrEqual"),
    elementwise.equal: _by("Equal"),
    elementwise.maximum: _by("Max"),
    elementwise.minimum: _by("Min"),
    elementwise.Where: _by("Where"),
    elementwise.logical_and: _by("And"),
    elementwise.logical_or: _by("Or"),
    elementwise.logical_not: _by("Not"),
    elementwise.Mask: _mask,
    elementwise.clipped: _by("Clip"),
    elementwise.AsType: _cast,
    selection.Max: _reduction("ReduceMax"),
    selection.Min: _reduction("ReduceMin"),
    reduction.Sum: _reduction("ReduceSum"),
    reduction.BroadcastTo: _broadcast,
    elementwise.leaky: _leaky_relu,
    elementwise.relu: _by("Relu"),
    normalization.ScaleAndShift: _scale_and_shift,
    selection.ArgMax: _by("ArgMax", "axis", keepdims=0),
    selection.ArgMin: _by("ArgMin", "axis", keepdims=0),
    indexing.Take: _by("Gather", "axis"),
    reduction.CumSum: _cumsum,
    indexing.CheckedIndices: _cast,
    shaping.Concatenate: _by("Concat", "axis"),
    shaping.Reshape: _reshape,
    shaping.Transpose: _transpose,
    shaping.Slice: _slice,
    shaping.ZerosAround: _zeros_around,
    convolution.Conv2D: _convolution,
    convolution.Conv2DInputGradient: _transposed_convolution,
    convolution.FusedConvolution: _fused_convolution,
    matmul.MatMul: _by("MatMul"),
    pooling.WindowMaximum: lambda known, node: _pooled(known, "MaxPool", *_sides(node)),
    pooling.WindowSum: _sum_of_windows,
}
