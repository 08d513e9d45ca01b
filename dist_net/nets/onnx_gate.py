"""The gate for ONNX files of others: one function decides whether a file is computed, and how.

    read ─▶ every tensor ─▶ names, labels ─▶ pixels, probabilities ─▶ a trial of rows ─▶ content

What leaves the gate is one array of bytes that refers to no other file. A serving pool passes files
through it in a process that it may kill; ``dist_net.load`` and ``--base`` in their own.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dist_net.errors import ForeignModelError, TensorInputError
from dist_net.ground.files import read_regular_file
from dist_net.images.fitting import fitting_named
from dist_net.images.labels import read_labels
from dist_net.nets.foreign_onnx import (
    ForeignModel,
    OnnxSession,
    package,
    prepared_bytes,
    translating,
)
from dist_net.nets.tensor_specs import DATATYPES, TYPE_CODES, Specs, Tensors, TensorSpec
from dist_net.nn.inference import Prepared

MAX_FILE_BYTES = 2**31 - 1  # of a message of protobuf
MAX_ROW_BYTES = 1 << 28  # of the inputs, or of the outputs
TRIAL_ROWS = 3
MAX_ROUNDING = 0.05  # of the difference between rows
ABSOLUTE_TOLERANCE = 1e-4
"""The difference between outputs that rounding may cause."""
SUM_TOLERANCE = 1e-2  # of the probabilities of a row, which may have been computed in FP16
LARGE = 1e6
HOSTILE = (LARGE, math.nan), (0.0, -LARGE)
"""The numbers that fill the rows before and after the row of a trial, as far as accepted."""

LETTERBOX = "letterbox"  # Darknet's fitting, in the metadata of exported files
NUMBERS, PROBABILITIES = "numbers", "probabilities"  # outputs that the gate appends
OPSET = 18  # of the appended operators, for a file that uses none of ONNX's own


class PixelOptions(NamedTuple):
    """How images become the input of a foreign model: (pixels - mean) / scale, after fitting.

    Texts, as a user or the file's metadata states them: ``mean`` and ``scale`` of one number or of
    one for each channel, divided by "/"; ``size`` is HEIGHTxWIDTH, for inputs of any size.
    """

    fitting: str = ""
    mean: str = ""
    scale: str = ""
    size: str = ""


class AcceptedOnnx(NamedTuple):
    """A file behind the gate; with ``labels`` its only output is their probabilities, FP32."""

    model: ForeignModel
    prepared: Prepared
    labels: tuple[str, ...]
    fitting: str
    unknown_below: float


def accept(
    path: Path, labels: Path | None, pixels: PixelOptions, is_base: bool = False
) -> AcceptedOnnx:
    """Return the model in an ONNX file; ``labels`` and ``pixels`` replace its metadata.

    A model with labels is a classifier: only its output of that many numbers is kept, as FP32
    probabilities. Its image input, and the image input of a base, is replaced by pixels, ``(N, H,
    W, C)`` uint8. Raise ForeignModelError, ModelFileError for ``labels``, SettingError for an
    unknown fitting, and MissingExtraError without the extra.
    """
    with translating(ForeignModelError, f"{path} cannot be used"):
        proto = _read(path)
        known = {each.key: each.value for each in proto.metadata_props}
        pixels = PixelOptions(
            *(text or known.get(name, "") for name, text in pixels._asdict().items())
        )
        names = () if is_base else _labels(known) if labels is None else read_labels(labels)
        unknown_below = float(known.get("unknown_below", 0))
        if not 0 <= unknown_below <= 1:
            raise ValueError(f"unknown_below is {unknown_below}; expected a probability")
        fitting = pixels.fitting or "crop"
        if names:
            _keep_classes(proto, len(names))
        if is_base or (names and fitting != LETTERBOX):
            fitting_named(fitting)
            _accept_pixels(proto, pixels)
        if names:
            _append_probabilities(proto)
        model, prepared = accepted_graph(proto, is_classifier=bool(names))
        return AcceptedOnnx(model, prepared, names, fitting, unknown_below)


def accepted_graph(proto: Any, is_classifier: bool = False) -> tuple[ForeignModel, Prepared]:
    """Return the model of a graph and its prepared arrays, after a trial of its rows.

    If the outputs of a row depend on other rows, a classifier computes each row alone, and another
    model is not batched. Raise an error of any class for a graph that cannot be used.
    """
    prepared = prepared_bytes(proto.SerializeToString())
    model = interface_of(proto)
    if not model.is_batched:
        OnnxSession(model, prepared)
    elif not are_rows_independent(OnnxSession(model, prepared)):
        if is_classifier:
            model = replace(model, rows_alone=True)
        else:
            model = model.with_shapes(lambda shape: (-1, *shape), is_batched=False)
    return model, prepared


@lru_cache(maxsize=2)
def session_of(content: bytes, threads: int) -> OnnxSession:
    """Return the session of the base of a run, shared by the plans of all batch sizes."""
    with translating(ForeignModelError, "the base of the run cannot be used"):
        proto = package("onnx").load_from_string(content)
        _require_self_contained(proto)
        return OnnxSession(interface_of(proto), prepared_bytes(content), threads)


# Reading


def _read(path: Path) -> Any:
    """Return the ModelProto in a file; its weights may be in files beside it."""
    content = read_regular_file(path, MAX_FILE_BYTES)
    try:
        proto = package("onnx").load_from_string(content)
        if not proto.ir_version:
            raise ValueError("it has no IR version")
    except Exception as error:  # protobuf's classes have no common base
        raise ValueError("it is no ONNX file or cut short; export or copy it again") from error
    left = MAX_FILE_BYTES - proto.ByteSize()
    for tensor in proto.graph.initializer:
        if tensor.external_data:
            left -= _bring_in(tensor, path.parent, left)
    _require_self_contained(proto)
    return proto


def onnx_files(path: Path) -> list[Path]:
    """Return an ONNX file, and the files beside it of which it contains the names."""
    with translating(ForeignModelError, f"{path} cannot be used"):
        content = read_regular_file(path, MAX_FILE_BYTES)
        return [each for each in path.parent.iterdir() if each.name.encode() in content] + [path]


def _bring_in(tensor: Any, directory: Path, most: int) -> int:
    """Replace the reference to external data by the data, and return its size in bytes."""
    place = {each.key: each.value for each in tensor.external_data}
    name = place["location"]
    if name in ("", ".", "..") or not {"/", "\\"}.isdisjoint(name):
        raise ValueError(f"external data in {name!r:.80}; expected a file beside the model")
    size = int(place["length"]) if "length" in place else None
    if not (directory / name).exists():
        raise ValueError(f"its weights, {name!r}, are missing; expected that file beside it")
    with translating(ForeignModelError, "external data"):  # which is no symbolic link either
        offset = int(place.get("offset", 0))
        tensor.raw_data = read_regular_file(directory / name, most, os.O_NOFOLLOW, offset, size)
    tensor.data_location = package("onnx").TensorProto.DEFAULT
    del tensor.external_data[:]
    return len(tensor.raw_data)


def _require_self_contained(proto: Any) -> None:
    """Raise ValueError for an external tensor, and for text, which the memory limit ignores."""
    text = package("onnx").TensorProto.STRING
    messages = list(_messages(proto))
    attributes = [each for each in messages if each.DESCRIPTOR.name == "AttributeProto"]
    types = {"to", "dtype"}  # and the attributes of functions that these refer to
    while more := {each.ref_attr_name for each in attributes if each.name in types} - types:
        types |= more
    for message in messages:
        kind = message.DESCRIPTOR.name
        if kind == "TensorProto" and (message.external_data or message.data_location):
            raise ValueError(
                f"the tensor {message.name!r:.80} is stored externally; expected external data "
                f"of the main graph's weights alone"
            )
        is_text = kind == "TensorProto" and message.data_type == text
        if kind == "AttributeProto":
            makes_text = message.name in types and message.i == text
            is_text = makes_text or message.name.endswith(("_string", "_strings"))
        if is_text:
            raise ValueError(f"{message.name!r:.80} is text; expected tensors of numbers alone")


def _messages(message: Any) -> Iterator[Any]:
    """Yield a message of protobuf and all messages in it, at any depth."""
    waiting = [message]
    while waiting:
        yield (each := waiting.pop())
        for field, value in each.ListFields():
            if field.message_type is not None:
                waiting.extend([value] if hasattr(value, "DESCRIPTOR") else value)


def _labels(known: Mapping[str, str]) -> tuple[str, ...]:
    names = json.loads(known.get("labels", "[]"))
    if not isinstance(names, list) or not all(isinstance(each, str) for each in names):
        raise ValueError(f"the labels are {names!r:.80}; expected a JSON array of strings")
    return tuple(names)


# The interface


def interface_of(proto: Any) -> ForeignModel:
    """Return the model: its rows are a batch if every first axis, and no other, is free."""
    inputs = tuple(map(_spec, _inputs(proto)))
    outputs = tuple(map(_spec, proto.graph.output))
    for specs in (inputs, outputs):
        names = {each.name for each in specs}
        if not names or len(names) < len(specs):
            raise ValueError(
                f"it has inputs or outputs named {[each.name for each in specs]!r:.200}; expected "
                f"some of both, with unique names"
            )
    model = ForeignModel(inputs, outputs, is_batched=False)
    if all(each.shape[:1] == (-1,) and -1 not in each.shape[1:] for each in (*inputs, *outputs)):
        model = model.with_shapes(lambda shape: shape[1:], is_batched=True)
        for specs in (model.inputs, model.outputs):
            size = sum(math.prod(each.shape) * each.dtype.itemsize for each in specs)
            if size > MAX_ROW_BYTES:
                raise ValueError(f"rows of {size:,} bytes; expected at most {MAX_ROW_BYTES:,}")
    return model


def _inputs(proto: Any) -> list[Any]:
    graph = proto.graph
    constants = {each.name for each in graph.initializer}
    constants |= {each.values.name for each in graph.sparse_initializer}
    return [each for each in graph.input if each.name not in constants]


def _spec(value: Any) -> TensorSpec:
    try:
        kind = package("onnx").helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        datatype = DATATYPES[kind]
    except KeyError as error:
        raise ValueError(
            f"{value.name!r:.80} is no tensor of numbers; expected tensors of "
            f"{', '.join(DATATYPES.values())}"
        ) from error
    return TensorSpec.parsed((value.name, datatype, _sizes(value)))


def _sizes(value: Any) -> tuple[int, ...]:
    """Return the shape of an input or output; -1 for a free axis."""
    sizes = (each.dim_value for each in value.type.tensor_type.shape.dim)
    return tuple(size if size > 0 else -1 for size in sizes)


# Classifiers


def _keep_classes(proto: Any, classes: int) -> None:
    """Remove all outputs except the output of ``classes`` numbers."""
    outputs = proto.graph.output
    found = [each for each in outputs if _sizes(each)[1:] == (classes,)]
    if len(found) != 1:
        raise ValueError(
            f"{len(found)} outputs of {classes:,} numbers, one for each label; expected one"
        )
    del outputs[:]
    outputs.append(found[0])


def _append_probabilities(proto: Any) -> None:
    """Make the only output probabilities, which are recognised by their sum, in FP32."""
    model = interface_of(proto)
    if not model.is_batched:
        raise ValueError(
            "it has labels, and does not compute rows independently; expected a free first axis "
            "alone: export Darknet's nets without --preprocessing"
        )
    session = OnnxSession(model, prepared_bytes(proto.SerializeToString()))
    rows = random_rows(model.inputs)
    found = [
        session.predict({name: each[i : i + 1] for name, each in rows.items()}) for i in (0, 1)
    ]
    output = model.outputs[0]
    numbers = np.stack([each[output.name] for each in found]).astype(np.float64)
    if numbers.shape != (2, 1, model.classes):
        raise ValueError(f"outputs of shape {numbers.shape[1:]} for a row")
    onnx, graph = package("onnx"), proto.graph
    nodes, name = [], output.name
    if output.datatype != "FP32":
        nodes.append(onnx.helper.make_node("Cast", [name], [NUMBERS], to=onnx.TensorProto.FLOAT))
        name = NUMBERS
    if not ((numbers >= 0).all() and np.allclose(numbers.sum(-1), 1, atol=SUM_TOLERANCE)):
        nodes.append(onnx.helper.make_node("Softmax", [name], [PROBABILITIES], axis=1))
        name = PROBABILITIES
    if nodes:
        if not any(each.domain in ("", "ai.onnx") for each in proto.opset_import):
            proto.opset_import.append(onnx.helper.make_opsetid("", OPSET))
        graph.node.extend(nodes)
        info = onnx.helper.make_tensor_value_info(
            name, onnx.TensorProto.FLOAT, ("N", model.classes)
        )
        graph.output[0].CopyFrom(info)


def _accept_pixels(proto: Any, pixels: PixelOptions) -> None:
    """Replace an image input by pixels, (N, H, W, C) uint8; raise ValueError if they misfit."""
    image, *others = _inputs(proto)
    count, *sizes = _sizes(image) or (1,)
    if others or count != -1 or len(sizes) != 3 or not {sizes[0], sizes[2]} & {1, 3}:
        return
    is_first = sizes[0] in (1, 3)
    channels = sizes.pop(0 if is_first else 2)
    with translating(ForeignModelError, f"{pixels} for images of {[*sizes, channels]}"):
        sides = [int(side) for side in pixels.size.split("x")] if pixels.size else sizes
        mean = np.array((pixels.mean or "0").split("/"), np.float32)
        scale = np.array((pixels.scale or "1").split("/"), np.float32)
        is_right = {len(mean), len(scale)} <= {1, channels} and scale.all()
        if not (is_right and len(sides) == 2 and min(sides) > 0):
            raise ValueError(
                f"expected mean and scale of one number or {channels}, no scale of 0, and "
                f"size=HEIGHTxWIDTH for images of any size"
            )
    onnx, graph = package("onnx"), proto.graph
    node, array, name = onnx.helper.make_node, onnx.numpy_helper.from_array, image.name
    pixel, number, centred, scaled, turned = (f"{name}/{place}" for place in range(5))
    steps = [
        node("Cast", [pixel], [number], to=onnx.TensorProto.FLOAT),
        node("Sub", [number, f"{name}/mean"], [centred]),
        node("Div", [centred, f"{name}/scale"], [scaled]),
        node("Transpose", [scaled], [turned], perm=[0, 3, 1, 2] if is_first else [0, 1, 2, 3]),
        node("Cast", [turned], [name], to=image.type.tensor_type.elem_type),
        *graph.node,
    ]
    del graph.node[:]
    graph.node.extend(steps)
    graph.initializer.extend([array(mean, f"{name}/mean"), array(scale, f"{name}/scale")])
    shape = "N", *sides, channels
    graph.input.remove(image)
    graph.input.append(onnx.helper.make_tensor_value_info(pixel, onnx.TensorProto.UINT8, shape))


# The trial


def are_rows_independent(session: OnnxSession) -> bool:
    """Return whether rows have the same outputs whatever their neighbours are.

    Beside other rows they are equal bit for bit, as the same numbers are added in the same order;
    hostile neighbours would change the scale of a file that quantises a batch. Elsewhere or alone
    they may be rounded otherwise: by 0.005 in the model of the package ``magika``. Return False if
    the model refuses rows of the trial, too: a property that was not tried is not proven.
    """
    rows = random_rows(session.model.inputs)
    try:
        return _is_equal_elsewhere(session, rows) and _is_equal_beside(session, rows)
    except TensorInputError:  # such as other shapes than the file states
        return False


def _is_equal_elsewhere(session: OnnxSession, rows: Tensors) -> bool:
    """Return whether the middle row has the same outputs, but for rounding, alone and first."""
    together = session.predict(rows)
    alone = session.predict({name: each[1:2] for name, each in rows.items()})
    moved = session.predict({name: each[[1, 2, 0]] for name, each in rows.items()})
    for name, _, shape in session.model.outputs:
        sizes = [each[name].shape for each in (together, alone, moved)]
        if sizes != [(TRIAL_ROWS, *shape), (1, *shape), (TRIAL_ROWS, *shape)]:
            return False
        outputs = together[name].astype(np.float64)
        rounding = ABSOLUTE_TOLERANCE + MAX_ROUNDING * np.ptp(outputs, axis=0).max(initial=0)
        others = np.concatenate([alone[name], moved[name][:1]])
        if (np.abs(others - outputs[1]) > rounding).any():
            return False
    return True


def _is_equal_beside(session: OnnxSession, rows: Tensors) -> bool:
    """Return whether no bit of a row changes beside hostile rows.

    Of an input with a limit, such as ids, each row is filled with another of the highest numbers,
    and stays in turn: the row with the extremes of the batch is replaced in two trials of three.
    Other integers are 1, because a mask or a length of 0 would hide the rest of its row.
    """
    pairs = [
        {name: np.stack([_accepted(session, rows, name, n) for n in pair]) for name in rows}
        for pair in HOSTILE
    ]
    rows, places = dict(rows), {1}
    for name, each in rows.items():
        highest = pairs[0][name][0].max()
        if highest < _filled(each[0], LARGE).max():
            numbers = (highest - place % (highest + 1) for place in range(TRIAL_ROWS))
            rows[name] = np.stack([_filled(each[0], number) for number in numbers])
            places = {*range(TRIAL_ROWS)}
        elif each.dtype.kind in "bi":
            rows[name] = np.ones_like(each)
    expected = session.predict(rows)
    for place, pair in product(places, pairs):
        beside = {name: np.insert(pair[name], place, rows[name][place], axis=0) for name in rows}
        found = session.predict(beside)
        both = ((found[name][place], each[place]) for name, each in expected.items())
        if any(one.tobytes() != other.tobytes() for one, other in both):
            return False
    return True


def _accepted(session: OnnxSession, rows: Tensors, name: str, number: float) -> NDArray[Any]:
    """Return a row of the input ``name`` filled with ``number``, or the next that is accepted.

    Ids and lengths have a range, which bisection from 0 finds.
    """
    one = {key: each[1:2] for key, each in rows.items()}

    def is_accepted(candidate: float) -> bool:
        one[name] = _filled(rows[name][1:2], candidate)
        try:
            session.predict(one)
        except TensorInputError:
            return False
        return True

    accepted, refused = 0.0, float(np.nan_to_num(number))
    if is_accepted(number):
        accepted = refused = number
    while abs(refused - accepted) > 1:
        middle = (accepted + refused) // 2
        accepted, refused = (middle, refused) if is_accepted(middle) else (accepted, middle)
    return _filled(rows[name][1], accepted)


def _filled(row: NDArray[Any], number: float) -> NDArray[Any]:
    """Return an array like ``row`` of the number, as far as its type can represent it."""
    if row.dtype.kind in "iu":
        limits = np.iinfo(row.dtype)
        number = int(np.clip(np.nan_to_num(number), limits.min, limits.max))
    with np.errstate(over="ignore"):  # FP16 has infinity instead
        return np.full_like(row, number)


def random_rows(specs: Specs) -> Tensors:
    """Return rows for a trial: normal numbers, pixels for uint8, zeros and ones otherwise.

    Pixels are of medium brightness, so that neighbours may be darker and brighter.
    """
    generator, rows = np.random.default_rng(0), {}
    for name, datatype, sizes in specs:
        shape = TRIAL_ROWS, *sizes
        low, high = (64, 192) if datatype == "UINT8" else (0, 2)
        numbers: NDArray[Any] = generator.integers(low, high, shape)
        if datatype.startswith("FP"):
            numbers = generator.normal(size=shape)
        rows[name] = numbers.astype(TYPE_CODES[datatype])
    return rows
