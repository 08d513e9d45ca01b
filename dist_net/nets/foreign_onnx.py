"""Foreign models: ONNX files, checked as data, and computed by ONNX Runtime.

Nothing is imported from the extra ``onnxruntime`` before it is used. A file becomes one array of
bytes with everything that it needs, which is sent and mapped like prepared weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dist_net.autodiff.arrays import Shape
from dist_net.errors import (
    DistNetError,
    ForeignModelError,
    MissingExtraError,
    TensorInputError,
)
from dist_net.nets.tensor_specs import DATATYPES, Specs, Tensors, TensorSpec
from dist_net.nn import Model
from dist_net.nn.inference import Inference, Prepared

ONNX = "onnx"
"""The name of the array that holds a file's bytes, among the prepared arrays of a model."""

MAX_FILE_BYTES = 2**31 - 1  # of a message of protobuf, with the external data
MAX_TENSOR_BYTES = 4 << 30
"""The maximum memory of all tensors of all foreign models in a process."""
MIN_OPSET = 7
STANDARD = "", "ai.onnx"
BUILT_IN = "ai.onnx.ml", "com.microsoft"
"""Further domains of operators that ONNX Runtime contains."""

PROBED_ROWS = 3
MAX_ROUNDING = 0.05  # of the difference between rows
MAX_REASON = 500  # characters of an error of ONNX Runtime
RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE = 1e-3, 1e-4
"""The allowed difference between the outputs of two engines."""


@dataclass(frozen=True)
class ForeignModel:
    """The inputs and outputs of an ONNX file. With ``is_batched`` it computes rows, each by itself.

    The properties match ``nn.Model`` for a model with one input and one output.
    """

    inputs: Specs
    outputs: Specs
    is_batched: bool

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.inputs[0].shape

    @property
    def input_dtype(self) -> np.dtype[Any]:
        return self.inputs[0].dtype

    @property
    def classes(self) -> int:
        """The number of outputs of a row; 0 if it depends on the input."""
        sizes = self.outputs[0].shape
        return int(np.prod(sizes)) if self.is_batched else 0

    def with_shapes(self, changed: Callable[[Shape], Shape], is_batched: bool) -> ForeignModel:
        """Return the model with its shapes changed by a function."""
        inputs, outputs = (
            tuple(each._replace(shape=changed(each.shape)) for each in specs)
            for specs in (self.inputs, self.outputs)
        )
        return ForeignModel(inputs, outputs, is_batched)


class OnnxSession:
    """Computes a foreign model with ``threads`` threads of ONNX Runtime.

    Raise MissingExtraError without the extra, and ForeignModelError if ONNX Runtime refuses the
    file.
    """

    def __init__(self, model: ForeignModel, prepared: Prepared, threads: int = 1) -> None:
        self.model = model
        runtime = package("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 4  # errors are raised, and their text is the file's own
        options.add_session_config_entry("session.use_env_allocators", "1")
        _bound_memory()
        with _translating(ForeignModelError, "ONNX Runtime refuses the file"):
            self._session = runtime.InferenceSession(
                prepared[ONNX].tobytes(), options, ["CPUExecutionProvider"]
            )
        self._names = [each.name for each in self._session.get_outputs()]

    def run(self, tensors: Mapping[str, NDArray[Any]]) -> Tensors:
        """Return the outputs by name. Raise TensorInputError if the inputs do not fit the model."""
        dtypes = {each.name: each.dtype for each in self.model.inputs}
        feeds = {
            name: np.require(array, dtypes.get(name), ["C", "A"]) for name, array in tensors.items()
        }
        with _translating(TensorInputError, "the model refuses the input"):
            found = self._session.run(self._names, feeds)
        return {
            each.name: np.asarray(array, each.dtype)
            for each, array in zip(self.model.outputs, found, strict=True)
        }

    def __call__(self, inputs: NDArray[Any]) -> NDArray[Any]:
        """Return the output of a model with one input and one output, as ``Inference`` does."""
        return self.predict(inputs)[self.model.outputs[0].name]

    def predict(self, inputs: NDArray[Any] | Mapping[str, NDArray[Any]]) -> Tensors:
        """Return the outputs by name, of the inputs by name, or of the only input."""
        if isinstance(inputs, Mapping):
            return self.run(inputs)
        return self.run({self.model.inputs[0].name: inputs})

    def rebound(self, prepared: Prepared) -> None:
        """Return None: sessions of other weights share nothing."""

    def warm_up(self, may_go_on: Callable[[], bool] = lambda: True) -> None:
        """Do nothing: the session is ready when it is created."""

    def close(self) -> None:
        """Release the session."""
        del self._session


def open_session(
    model: Model | ForeignModel,
    prepared: Prepared,
    threads: int = 1,
    batch_size: int = 8,
    reproducible: bool = True,
    compiled: bool = True,
) -> Inference | OnnxSession:
    """Return the session that computes ``model``; see ``Inference`` for the options."""
    if isinstance(model, ForeignModel):
        return OnnxSession(model, prepared, threads)
    return Inference(model, prepared, threads, batch_size, reproducible, compiled)


class PixelOptions(NamedTuple):
    """How images become the input of a foreign model: (pixels - mean) / scale, after fitting.

    Texts, as a user writes them: ``mean`` and ``scale`` of one number or of one for each channel,
    divided by "/"; ``size`` is HEIGHTxWIDTH, for inputs of any size.
    """

    fitting: str = ""
    mean: str = "0"
    scale: str = "1"
    size: str = ""

    def numbers(self, name: str, separator: str = "/") -> NDArray[np.float32]:
        """Return the numbers of an option. Raise ForeignModelError."""
        text = getattr(self, name)
        try:
            return np.array(text.split(separator), np.float32)
        except ValueError as error:
            raise ForeignModelError(
                f"{name}={text!r}: expected numbers divided by {separator!r}"
            ) from error


def read_proto(path: Path) -> Any:
    """Return the ModelProto in a file, with its external data; see ``checked_proto``."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ForeignModelError(f"{path}: expected at most {MAX_FILE_BYTES:,} bytes")
        return checked_proto(path.read_bytes(), path)
    except OSError as error:
        raise ForeignModelError(f"{path}: {error.strerror}; expected an ONNX file") from error


def checked_proto(content: bytes, path: Path, has_data_beside: bool = True) -> Any:
    """Return the ModelProto in ``content``, with external data from beside ``path``, if any.

    Raise ForeignModelError for damaged content, unknown operators, and other external data.
    """
    onnx, decode_error = package("onnx"), import_module("google.protobuf.message").DecodeError
    try:
        proto = onnx.ModelProto.FromString(content)
    except decode_error as error:
        raise ForeignModelError(f"{path} is no ONNX file, or a damaged one: {error}") from error
    newest = onnx.defs.onnx_opset_version()
    for each in proto.opset_import:
        if each.domain in STANDARD and not MIN_OPSET <= each.version <= newest:
            raise ForeignModelError(
                f"{path} has opset {each.version}; expected {MIN_OPSET} to {newest}: export it "
                f"again for one of these"
            )
    domains = {*STANDARD, *BUILT_IN, *(each.domain for each in proto.functions)}
    budget = MAX_FILE_BYTES - len(content) if has_data_beside else 0
    for each in _messages(proto):
        if isinstance(each, onnx.NodeProto):
            is_unknown = each.domain in STANDARD and not onnx.defs.has(each.op_type)
            if is_unknown or each.domain not in domains:
                raise ForeignModelError(
                    f"{path} has the operator {each.op_type!r:.80} of {each.domain!r:.80}; "
                    f"expected operators that ONNX Runtime has built in"
                )
        elif isinstance(each, onnx.TensorProto) and each.data_location == each.EXTERNAL:
            budget -= _embed(each, path, budget)
    return proto


def _messages(message: Any) -> Iterator[Any]:
    """Yield a message of protobuf and every message inside it."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for each in [value] if hasattr(value, "ListFields") else value:
                yield from _messages(each)


def _embed(tensor: Any, path: Path, budget: int) -> int:
    """Replace a reference to external data by the data; return the number of bytes."""
    entries = {each.key: each.value for each in tensor.external_data}
    location = entries.get("location", "")
    file = path.parent / location
    has_name = bool(location) and file.name == location
    size = file.stat().st_size if has_name and file.is_file() else -1
    try:
        offset = int(entries.get("offset", 0))
        length = int(entries.get("length", size - offset))
    except ValueError:
        offset = length = -1
    if not (0 <= offset <= offset + length <= size and length <= budget):
        raise ForeignModelError(
            f"{path} refers to external data, {str(entries)[:200]}; expected a part of a file "
            f"beside it, and at most {MAX_FILE_BYTES:,} bytes in total"
        )
    with file.open("rb") as opened:
        opened.seek(offset)
        tensor.raw_data = opened.read(length)
    del tensor.external_data[:]
    tensor.ClearField("data_location")
    return length


def interface_of(proto: Any, path: Path) -> ForeignModel:
    """Return the model: its rows are a batch if every first axis, and no other, is free."""
    inputs = tuple(_spec(each, path) for each in _inputs(proto))
    outputs = tuple(_spec(each, path) for each in proto.graph.output)
    if not inputs or not outputs:
        raise ForeignModelError(f"{path} has no inputs or no outputs; expected some of both")
    model = ForeignModel(inputs, outputs, is_batched=False)
    if all(each.shape[:1] == (-1,) and -1 not in each.shape[1:] for each in (*inputs, *outputs)):
        return model.with_shapes(lambda shape: shape[1:], is_batched=True)
    return model


def _inputs(proto: Any) -> list[Any]:
    constants = {each.name for each in proto.graph.initializer}
    return [each for each in proto.graph.input if each.name not in constants]


def _spec(value: Any, path: Path) -> TensorSpec:
    element_type = value.type.tensor_type.elem_type
    try:
        dtype = package("onnx").helper.tensor_dtype_to_np_dtype(element_type)
        return TensorSpec(value.name, DATATYPES[dtype], _sizes(value))
    except KeyError as error:
        raise ForeignModelError(
            f"{path}: {value.name!r:.80} is no tensor of numbers; expected tensors of "
            f"{', '.join(DATATYPES.values())}"
        ) from error


def _sizes(value: Any) -> tuple[int, ...]:
    """Return the shape of an input or output; -1 for a free axis."""
    sizes = (each.dim_value for each in value.type.tensor_type.shape.dim)
    return tuple(size if size > 0 else -1 for size in sizes)


def probed(model: ForeignModel, prepared: Prepared) -> tuple[ForeignModel, NDArray[Any] | None]:
    """Return the model, and the first output of random rows, once ONNX Runtime accepts the file.

    If a row has other outputs in a batch, the model is not batched, and no rows are returned.
    """
    session = OnnxSession(model, prepared)
    if not model.is_batched:
        return model, None
    generator = np.random.default_rng(0)
    rows = {each.name: random_rows(each, generator) for each in model.inputs}
    one_by_one = [
        {name: array[row : row + 1] for name, array in rows.items()} for row in range(PROBED_ROWS)
    ]
    try:
        together, alone = session.run(rows), [session.run(each) for each in one_by_one]
        is_batched = all(
            _are_independent(together[name], np.concatenate([each[name] for each in alone]))
            for name in together
        )
    except (TensorInputError, ValueError):  # other shapes than the file states
        is_batched = False
    if is_batched:
        return model, together[model.outputs[0].name]
    return model.with_shapes(lambda shape: (-1, *shape), is_batched=False), None


def _are_independent(together: NDArray[Any], alone: NDArray[Any]) -> bool:
    """Return whether a batch changes the outputs of its rows by rounding alone.

    Rounding may move a probability by 0.005 (the model of the package ``magika``); rows that depend
    on each other differ as much as other rows do.
    """
    if together.shape != alone.shape:
        return False
    numbers = alone.astype(np.float64)
    allowed = ABSOLUTE_TOLERANCE + MAX_ROUNDING * np.ptp(numbers, axis=0).max(initial=0)
    return bool((np.abs(together - numbers) <= allowed).all())


def random_rows(spec: TensorSpec, generator: np.random.Generator) -> NDArray[Any]:
    """Return rows for a trial: normal numbers, pixels for uint8, zeros and ones otherwise."""
    shape = PROBED_ROWS, *spec.shape
    if spec.dtype.kind == "f":
        return generator.standard_normal(shape).astype(spec.dtype)
    return generator.integers(256 if spec.datatype == "UINT8" else 2, size=shape).astype(spec.dtype)


def keep_classes(proto: Any, classes: int, path: Path) -> None:
    """Keep only the output of ``classes`` numbers, which are probabilities or logits."""
    outputs = proto.graph.output
    found = [each for each in outputs if _sizes(each)[1:] == (classes,)]
    if len(found) != 1:
        raise ForeignModelError(
            f"{path} has {len(found)} outputs of {classes:,} numbers, one for each label; expected "
            f"one"
        )
    del outputs[:]
    outputs.append(found[0])


def accept_pixels(proto: Any, pixels: PixelOptions) -> None:
    """Replace the only input, if it is an image, by uint8 pixels, (N, H, W, C), in the graph.

    Raise ForeignModelError if ``pixels`` do not fit it.
    """
    inputs = _inputs(proto)
    count, *sizes = _sizes(inputs[0]) or (1,)
    if len(inputs) > 1 or count != -1 or len(sizes) != 3 or not {sizes[0], sizes[2]} & {1, 3}:
        return
    is_first = sizes[0] in (1, 3)
    channels = sizes.pop(0 if is_first else 2)
    sides = pixels.numbers("size", "x").astype(int).tolist() if pixels.size else sizes
    mean, scale = pixels.numbers("mean"), pixels.numbers("scale")
    is_right = {len(mean), len(scale)} <= {1, channels} and scale.all()
    if not (is_right and len(sides) == 2 and min(sides) > 0):
        raise ForeignModelError(
            f"{pixels} for images of {[*sizes, channels]}; expected mean and scale of one number "
            f"or {channels}, no scale of 0, and size=HEIGHTxWIDTH for images of any size"
        )
    onnx, name = package("onnx"), inputs[0].name
    for suffix, array in ("mean", mean), ("scale", scale):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, f"{name}/{suffix}"))
    element_type = inputs[0].type.tensor_type.elem_type
    steps: list[tuple[str, list[str], dict[str, Any]]] = [
        ("Cast", [], {"to": onnx.TensorProto.FLOAT}),
        ("Sub", [f"{name}/mean"], {}),
        ("Div", [f"{name}/scale"], {}),
        ("Transpose", [], {"perm": [0, 3, 1, 2] if is_first else [0, 1, 2, 3]}),
        ("Cast", [], {"to": element_type}),
    ]
    values = [f"{name}/pixels", *(f"{name}/{place}" for place in range(4)), name]
    for place, (operator, others, attributes) in enumerate(steps):
        ends = [values[place], *others], [values[place + 1]]
        proto.graph.node.insert(place, onnx.helper.make_node(operator, *ends, **attributes))
    proto.graph.input.remove(inputs[0])
    shape = ["N", *sides, channels]
    proto.graph.input.append(
        onnx.helper.make_tensor_value_info(values[0], onnx.TensorProto.UINT8, shape)
    )


def prepared_bytes(content: bytes) -> Prepared:
    """Return the prepared arrays of a foreign model: the bytes of its file."""
    return {ONNX: np.frombuffer(content, np.uint8)}


def package(name: str) -> Any:
    """Return the module ``onnx`` or ``onnxruntime``. Raise MissingExtraError."""
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingExtraError(
            f"ONNX files need a package that cannot be imported ({error}); install it with: "
            f"pip install -e '.[onnxruntime]'"
        ) from error


@cache
def _bound_memory() -> None:
    """Limit the memory for tensors of all sessions of this process."""
    runtime = package("onnxruntime")
    kinds = runtime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, runtime.OrtMemType.DEFAULT
    limit = runtime.OrtArenaCfg({"max_mem": MAX_TENSOR_BYTES})
    runtime.create_and_register_allocator(runtime.OrtMemoryInfo("Cpu", *kinds), limit)


@contextmanager
def _translating(error_class: type[DistNetError], what: str) -> Iterator[None]:
    """Translate the errors of ONNX Runtime, which have no common base class."""
    try:
        yield
    except _runtime_errors() as error:
        raise error_class(f"{what}: {str(error)[:MAX_REASON]}") from error


@cache
def _runtime_errors() -> tuple[type[Exception], ...]:
    state = vars(import_module("onnxruntime.capi.onnxruntime_pybind11_state")).values()
    own = (each for each in state if isinstance(each, type) and issubclass(each, Exception))
    return RuntimeError, ValueError, *own
