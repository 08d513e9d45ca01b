"""Models of ONNX files, computed by ONNX Runtime; ``onnx_gate`` decides which files run, and how.

Nothing is imported from the extra ``onnxruntime`` before it is used. A model is one array of bytes
with everything that it needs, which is sent and mapped like prepared weights.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from dist_net.autodiff.arrays import Shape
from dist_net.data.samples import records
from dist_net.errors import DistNetError, ForeignModelError, TensorInputError
from dist_net.ground.command_line import importing
from dist_net.nets.tensor_specs import INPUT, Inputs, Specs, Tensors
from dist_net.nn import Model
from dist_net.nn.inference import Inference, Prepared

ONNX = "onnx"
"""The name of the array that holds a file's bytes, among the prepared arrays of a model."""

MAX_TENSOR_BYTES = 4 << 30
"""The maximum memory of all tensors of all foreign models in a process."""

CPP_PLACE = re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : (/\S+:\d+ .*\) )?")
TOO_NEW = re.compile(
    r"(Opset|IR version):? (\d+).*?(?:till opset|max supported IR version:) (\d+)", re.DOTALL
)
MAX_REASON = 500  # characters of an error of ONNX Runtime


@dataclass(frozen=True)
class ForeignModel:
    """The inputs and outputs of an ONNX file. With ``is_batched`` it computes rows, each by itself.

    With ``rows_alone`` each row is computed alone, because rows of a batch would influence each
    other. The properties match ``nn.Model`` for a model with one input and one output.
    """

    inputs: Specs
    outputs: Specs
    is_batched: bool
    rows_alone: bool = False

    def with_shapes(self, changed: Callable[[Shape], Shape], is_batched: bool) -> Self:
        inputs, outputs = (
            tuple(each._replace(shape=changed(each.shape)) for each in specs)
            for specs in (self.inputs, self.outputs)
        )
        return replace(self, inputs=inputs, outputs=outputs, is_batched=is_batched)

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
    """Runs a foreign model. Raise MissingExtraError, ForeignModelError if the file is refused."""

    def __init__(self, model: ForeignModel, prepared: Prepared, threads: int = 1) -> None:
        self.model = model
        runtime = package("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 4  # errors are raised, and their text is the file's own
        options.add_session_config_entry("session.use_env_allocators", "1")
        _bound_memory()
        with translating(ForeignModelError, "ONNX Runtime refuses the file"):
            self._session = runtime.InferenceSession(
                prepared[ONNX].tobytes(), options, ["CPUExecutionProvider"]
            )

    def predict(self, inputs: Inputs) -> Tensors:
        """Return the outputs by name, of inputs by name or the only one. Raise TensorInputError."""
        if not isinstance(inputs, Mapping):
            inputs = {self.model.inputs[0].name: inputs}
        dtypes = {each.name: each.dtype for each in self.model.inputs}
        feeds = {
            name: np.require(array, dtypes.get(name), ["C", "A"]) for name, array in inputs.items()
        }
        if not self.model.rows_alone:
            return self._run(feeds)
        rows = range(len(next(iter(feeds.values()))))
        found = [self._run({name: each[i : i + 1] for name, each in feeds.items()}) for i in rows]
        none = {each.name: np.empty((0, *each.shape), each.dtype) for each in self.model.outputs}
        return {name: np.concatenate([each[name] for each in (none, *found)]) for name in none}

    def _run(self, feeds: Tensors) -> Tensors:
        with translating(TensorInputError, "the model refuses the input"):
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
    """Return a session's outputs, named by ``outputs``. Raise TensorInputError for bad inputs."""
    if isinstance(session, OnnxSession):
        return session.predict(inputs)
    is_record = model.input_dtype.names is not None
    computed: NDArray[Any] = session(
        records(**inputs).astype(model.input_dtype) if is_record else inputs[INPUT]
    )
    is_record = computed.dtype.names is not None
    return {each.name: computed[each.name] if is_record else computed for each in outputs}


def prepared_bytes(content: bytes) -> Prepared:
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
def translating(error_class: type[DistNetError], what: str) -> Iterator[None]:
    """Translate every error: ``onnx`` and ONNX Runtime raise classes without a common base."""
    try:
        yield
    except ForeignModelError as error:
        raise error_class(f"{what}: {error}") from error
    except DistNetError:
        raise
    except Exception as error:
        raise error_class(f"{what}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Return an error's text without places in C++, and with a remedy if the file is too new."""
    text = str(error)
    if newer := TOO_NEW.search(text):
        kind, found, latest = newer.groups()
        return (
            f"its {kind} {found} is newer than {latest}, the latest that this onnxruntime "
            f"supports; export the model with a lower opset_version, or upgrade onnxruntime"
        )
    return CPP_PLACE.sub("", text)[:MAX_REASON].strip() or type(error).__name__
