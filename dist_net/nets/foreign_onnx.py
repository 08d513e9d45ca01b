"""Foreign models: ONNX files, read as data, computed by ONNX Runtime, and the base of nets.

Nothing is imported from the extra ``onnxruntime`` before it is used. A file becomes one array of
bytes with everything that it needs, which is sent and mapped like prepared weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dist_net.autodiff import Expression
from dist_net.autodiff.arrays import Array, Call, Shape
from dist_net.autodiff.expression import SharedOperation, apply
from dist_net.autodiff.kernels.thread_pool import ThreadPool
from dist_net.command_line import importing
from dist_net.data.samples import records
from dist_net.errors import DistNetError, ForeignModelError, TensorInputError
from dist_net.nets.tensor_specs import DATATYPES, INPUT, TYPE_CODES, Specs, Tensors, TensorSpec
from dist_net.nn import Model, Scope, zeros
from dist_net.nn.inference import Inference, Prepared
from dist_net.vector import Vector

ONNX = "onnx"
"""The name of the array that holds a file's bytes, among the prepared arrays of a model."""

MAX_FILE_BYTES = 2**31 - 1  # of a message of protobuf
MAX_TENSOR_BYTES = 4 << 30
"""The maximum memory of all tensors of all foreign models in a process."""

TRIAL_ROWS = 3
MAX_ROW_BYTES = 1 << 28  # of the inputs, or of the outputs
MAX_ROUNDING = 0.05  # of the difference between rows
ABSOLUTE_TOLERANCE = 1e-4
"""The difference between outputs that rounding may cause."""
MAX_REASON = 500  # characters of an error of ONNX Runtime


@dataclass(frozen=True)
class ForeignModel:
    """The inputs and outputs of an ONNX file. With ``is_batched`` it computes rows, each by itself.

    The properties match ``nn.Model`` for a model with one input and one output.
    """

    inputs: Specs
    outputs: Specs
    is_batched: bool

    def with_shapes(self, changed: Callable[[Shape], Shape], is_batched: bool) -> ForeignModel:
        """Return the model with its shapes changed by a function."""
        inputs, outputs = (
            tuple(each._replace(shape=changed(each.shape)) for each in specs)
            for specs in (self.inputs, self.outputs)
        )
        return ForeignModel(inputs, outputs, is_batched)

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

    def predict(self, inputs: NDArray[Any] | Mapping[str, NDArray[Any]]) -> Tensors:
        """Return the outputs by name, of the inputs by name, or of the only input.

        Raise TensorInputError if the inputs do not fit the model.
        """
        if not isinstance(inputs, Mapping):
            inputs = {self.model.inputs[0].name: inputs}
        dtypes = {each.name: each.dtype for each in self.model.inputs}
        feeds = {
            name: np.require(array, dtypes.get(name), ["C", "A"]) for name, array in inputs.items()
        }
        with _translating(TensorInputError, "the model refuses the input"):
            found = self._session.run(None, feeds)
        return {
            each.name: np.asarray(array, each.dtype)
            for each, array in zip(self.model.outputs, found, strict=True)
        }

    def __call__(self, inputs: NDArray[Any]) -> NDArray[Any]:
        """Return the output of a model with one input and one output, as ``Inference`` does."""
        return self.predict(inputs)[self.model.outputs[0].name]

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


def outputs_by_name(
    model: Model | ForeignModel, session: Inference | OnnxSession, inputs: Tensors, outputs: Specs
) -> Tensors:
    """Return the outputs of a session of ``model``, named by ``outputs``.

    Raise TensorInputError if an ONNX file refuses the inputs.
    """
    if isinstance(session, OnnxSession):
        return session.predict(inputs)
    is_record = model.input_dtype.names is not None
    computed: NDArray[Any] = session(
        records(**inputs).astype(model.input_dtype) if is_record else inputs[INPUT]
    )
    is_record = computed.dtype.names is not None
    return {each.name: computed[each.name] if is_record else computed for each in outputs}


class PixelOptions(NamedTuple):
    """How images become the input of a foreign model: (pixels - mean) / scale, after fitting.

    Texts, as a user or the file's metadata states them: ``mean`` and ``scale`` of one number or of
    one for each channel, divided by "/"; ``size`` is HEIGHTxWIDTH, for inputs of any size.
    """

    fitting: str = ""
    mean: str = ""
    scale: str = ""
    size: str = ""


def read_proto(path: Path) -> Any:
    """Return the ModelProto in a file, with its external data from beside the file.

    Raise ForeignModelError for a damaged file and for external data elsewhere.
    """
    with _translating(ForeignModelError, f"{path} is not a complete ONNX file"):
        onnx, size = package("onnx"), path.stat().st_size
        if size <= MAX_FILE_BYTES:
            proto = onnx.load(path, format="protobuf", load_external_data=False)
            external = onnx.external_data_helper
            # ONNX Runtime refuses external data of other tensors, as it gets no path.
            for tensor in filter(external.uses_external_data, proto.graph.initializer):
                place = external.ExternalDataInfo(tensor)
                left = (path.parent / place.location).stat().st_size - (place.offset or 0)
                size += place.length or left
                if size > MAX_FILE_BYTES:
                    break
                external.load_external_data_for_tensor(tensor, str(path.parent))
                tensor.data_location = onnx.TensorProto.DEFAULT
                del tensor.external_data[:]
            else:
                return proto
        raise ValueError(f"expected at most {MAX_FILE_BYTES:,} bytes with its external data")


def interface_of(proto: Any, path: Path) -> ForeignModel:
    """Return the model: its rows are a batch if every first axis, and no other, is free."""
    inputs = tuple(_spec(each, path) for each in _inputs(proto))
    outputs = tuple(_spec(each, path) for each in proto.graph.output)
    if not inputs or not outputs:
        raise ForeignModelError(f"{path} has no inputs or no outputs; expected some of both")
    model = ForeignModel(inputs, outputs, is_batched=False)
    if all(each.shape[:1] == (-1,) and -1 not in each.shape[1:] for each in (*inputs, *outputs)):
        model = model.with_shapes(lambda shape: shape[1:], is_batched=True)
        for specs in (model.inputs, model.outputs):
            size = sum(math.prod(each.shape) * each.dtype.itemsize for each in specs)
            if size > MAX_ROW_BYTES:
                raise ForeignModelError(
                    f"{path}: rows of {size:,} bytes; expected at most {MAX_ROW_BYTES:,}"
                )
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


def checked_model(proto: Any, path: Path) -> tuple[ForeignModel, Prepared, Tensors]:
    """Return the model, its prepared arrays, and its outputs for a few random rows.

    If a row has other outputs alone than in a batch, the model is not batched, and there are no
    outputs. Raise ForeignModelError if ONNX Runtime refuses the file.
    """
    with _translating(ForeignModelError, f"{path} is too large"):
        prepared = prepared_bytes(proto.SerializeToString())
    model = interface_of(proto, path)
    session = OnnxSession(model, prepared)
    outputs = _independent_outputs(session) if model.is_batched else {}
    if model.is_batched and not outputs:
        model = model.with_shapes(lambda shape: (-1, *shape), is_batched=False)
    return model, prepared, outputs


def _independent_outputs(session: OnnxSession) -> Tensors:
    """Return the outputs of random rows; none if the middle row has other outputs alone.

    Rounding may move a probability by 0.005 (the model of the package ``magika``); rows that depend
    on each other differ as much as other rows do.
    """
    rows = random_rows(session.model.inputs)
    try:
        together = session.predict(rows)
        alone = session.predict({name: array[1:2] for name, array in rows.items()})
    except TensorInputError:  # other shapes than the file states
        return {}
    for name, _, shape in session.model.outputs:
        outputs, expected = together[name].astype(np.float64), alone[name]
        if (outputs.shape, expected.shape) != ((TRIAL_ROWS, *shape), (1, *shape)):
            return {}
        rounding = ABSOLUTE_TOLERANCE + MAX_ROUNDING * np.ptp(outputs, axis=0).max(initial=0)
        if (np.abs(outputs[1:2] - expected) > rounding).any():
            return {}
    return together


def random_rows(specs: Specs) -> Tensors:
    """Return rows for a trial: normal numbers, pixels for uint8, zeros and ones otherwise."""
    generator, rows = np.random.default_rng(0), {}
    for name, datatype, sizes in specs:
        shape = TRIAL_ROWS, *sizes
        numbers: NDArray[Any] = generator.integers(256 if datatype == "UINT8" else 2, size=shape)
        if datatype.startswith("FP"):
            numbers = generator.normal(size=shape)
        rows[name] = numbers.astype(TYPE_CODES[datatype])
    return rows


def keep_classes(proto: Any, classes: int, path: Path) -> None:
    """Remove all outputs but that of ``classes`` numbers, which are probabilities or logits."""
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
    image, *others = _inputs(proto)
    count, *sizes = _sizes(image) or (1,)
    if others or count != -1 or len(sizes) != 3 or not {sizes[0], sizes[2]} & {1, 3}:
        return
    is_first = sizes[0] in (1, 3)
    channels = sizes.pop(0 if is_first else 2)
    with _translating(ForeignModelError, f"{pixels} for images of {[*sizes, channels]}"):
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


def prepared_bytes(content: bytes) -> Prepared:
    """Return the prepared arrays of a foreign model: the bytes of its file."""
    return {ONNX: np.frombuffer(content, np.uint8)}


def package(name: str) -> Any:
    """Return the module ``onnx`` or ``onnxruntime``. Raise MissingExtraError."""
    with importing("onnxruntime", "an ONNX file"):
        return import_module(name)


@cache
def _bound_memory() -> None:
    """Limit the memory for tensors of all sessions of this process."""
    runtime = package("onnxruntime")
    kinds = runtime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, runtime.OrtMemType.DEFAULT
    limit = runtime.OrtArenaCfg({"max_mem": MAX_TENSOR_BYTES})
    runtime.create_and_register_allocator(runtime.OrtMemoryInfo("Cpu", *kinds), limit)


@contextmanager
def _translating(error_class: type[DistNetError], what: str) -> Iterator[None]:
    """Translate the errors of ``onnx`` and ONNX Runtime, which have no common base class."""
    try:
        yield
    except _foreign_errors() as error:
        raise error_class(f"{what}: {str(error)[:MAX_REASON]}") from error


@cache
def _foreign_errors() -> tuple[type[Exception], ...]:
    state = vars(import_module("onnxruntime.capi.onnxruntime_pybind11_state")).values()
    own = (each for each in state if isinstance(each, type) and issubclass(each, Exception))
    of_file = (
        import_module("google.protobuf.message").Error,
        package("onnx").checker.ValidationError,
    )
    return OSError, RuntimeError, ValueError, *of_file, *own


@dataclass(frozen=True)
class OnnxFeatures:
    """Pixels, (N, H, W, C) uint8, to features, (N, features), by a file of ``size`` bytes.

    The file is a buffer of the net, so that checkpoints, prepared arrays and workers on other hosts
    contain it: two bytes to a number, since every float32 of a checkpoint must be finite.
    """

    size: int
    features: int

    def __call__(self, x: Expression, scope: Scope) -> Expression:
        file = scope.buffer("file", (-(-self.size // 2),), zeros, momentum=0.0)
        return apply(OnnxOperation(self.size, self.features), x, file)


@dataclass(frozen=True)
class OnnxOperation(SharedOperation):
    """The outputs of an ONNX file, its second input, for the first. It has no VJP."""

    size: int
    features: int
    reads_contiguous = True

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        return (inputs[0].shape[0], self.features), np.dtype(np.float32)

    def bind_shared(self, inputs: Sequence[Array], out: Array, pool: ThreadPool) -> Call:
        images, file = inputs
        session = _session_of(file.astype("<u2").tobytes()[: self.size], pool.threads)

        def compute() -> None:
            out[...] = session(images).reshape(out.shape, copy=False)

        return compute


@lru_cache(maxsize=2)
def _session_of(content: bytes, threads: int) -> OnnxSession:
    """Return the session of a base's content, shared by the plans of all batch sizes."""
    with _translating(ForeignModelError, "the base of the run is not a complete ONNX file"):
        onnx = package("onnx")
        proto = onnx.load_from_string(content)
        # A path below a file never exists: external data is refused.
        onnx.load_external_data_for_model(proto, str(Path(__file__) / "none"))
    return OnnxSession(interface_of(proto, Path("base.onnx")), prepared_bytes(content), threads)


def read_backbone(path: Path, pixels: PixelOptions) -> tuple[OnnxFeatures, Shape, Vector]:
    """Return the layers, the shape of an image, and the weights of an ONNX file.

    It must have one input of images and one output of features, of which further axes are
    flattened. Raise ForeignModelError, and MissingExtraError without the extra.
    """
    proto = read_proto(path)
    accept_pixels(proto, pixels)
    model, prepared, _ = checked_model(proto, path)
    spec = model.inputs[0]
    is_image = spec.datatype == "UINT8" and len(spec.shape) == 3
    if not (model.is_batched and is_image and len(model.inputs) == len(model.outputs) == 1):
        raise ForeignModelError(
            f"{path} has the inputs {model.inputs} and {len(model.outputs)} outputs; expected one "
            f"input of images and one output, of which rows are independent, with a free first axis"
        )
    content = prepared[ONNX]
    words = np.pad(content, (0, len(content) % 2)).view("<u2").astype(np.float32)
    return OnnxFeatures(len(content), model.classes), spec.shape, words
