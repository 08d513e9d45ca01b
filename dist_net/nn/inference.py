"""Inference: compute a model's outputs with constant weights, on several threads.

Prepared weights can be mapped from a file instead of being prepared again, a safetensors file: 8
bytes for the length of the header, the header as JSON, the arrays. Processes share the mapped
pages, which are read on first use.
"""

import hashlib
import json
import logging
import math
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, Self
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import save_file
from threadpoolctl import ThreadpoolController

from dist_net.autodiff import Array, BoundPlan, Expression, Plan, compile, evaluate
from dist_net.autodiff.arrays import Arena, Call, Shape, integer
from dist_net.autodiff.compiler.specialise import PerBatch, Specialised, mark_per_batch, specialise
from dist_net.autodiff.expression import Constant, topological_order
from dist_net.autodiff.kernels.gemm import LAYOUTS, Gemm, fastest_gemm
from dist_net.autodiff.kernels.thread_pool import ThreadPool
from dist_net.errors import PreparedKernelsError, ShapeError
from dist_net.ground.files import replacing
from dist_net.ground.vector import Vector
from dist_net.nn.model import INPUTS, Batch, Model
from dist_net.nn.parameters import Scope

logger = logging.getLogger(__name__)

Prepared = Mapping[str, Array]
"""Arrays by name that depend only on a network's weights and are computed once."""

KEY = "dist_net_prepared"
CHECKSUMS = "checksums"
FORMAT = 1  # increase when the preparation of an operation changes
MAX_HEADER = 1 << 20
DTYPES = {"F32": np.float32, "F64": np.float64, "U8": np.uint8}
MAX_VALUES = 1 << 22
"""The most input values of a convolutional plan of several images. The blocks of larger images keep
all threads busy; plans for 8, 7, ... 1 of 2048 x 2048 pixels took most of a minute to compile."""


class Inference:
    """Computes a model's outputs for any number of inputs, ``batch_size`` at a time.

    Fewer at a time if the inputs of a convolutional model are large: see ``MAX_VALUES``.

    Batch norm is folded into filters, and the operations after a convolution are fused with it: see
    ``dist_net.autodiff.compiler.specialise``. ``prepared`` is the result of ``prepare`` for the
    same model and weights; it is borrowed, so several processes can map one copy.

    With ``reproducible``, an input's outputs are bit-identical whatever else is in its batch. This
    takes a fifth longer for a batch of 8 if BLAS packs its operands, and no longer otherwise; see
    ``dist_net.autodiff.kernels.gemm``. Dense layers process eight inputs at a time, so one input
    takes as long as eight. Without it, outputs may differ in the last digits between batches, but
    not for the same batch. ``compiled``: use the kernels of the extra ``fast`` if it is installed;
    their outputs differ in the last digits.

    Not thread-safe, except for ``rebound``. ``threads`` is the number of threads of the session.
    """

    def __init__(
        self,
        model: Model,
        prepared: Prepared,
        threads: int = 1,
        batch_size: int = 8,
        reproducible: bool = True,
        compiled: bool = True,
    ) -> None:
        self._model = model
        self._prepared = prepared
        batch_size = integer("Inference: batch_size", batch_size, least=1)
        if model.has_convolutions:
            batch_size = max(1, min(batch_size, MAX_VALUES // math.prod(model.input_shape)))
        self._batch_size = batch_size
        compiled = compiled and import_kernels()
        logger.info("inference kernels=%s", "compiled" if compiled else "numpy")
        threads = integer("Inference: threads", threads, least=1)
        pool = ThreadPool(threads, _gemm_of(model, prepared))
        self._plans = _Plans(model, pool, batch_size, reproducible, compiled)
        self._is_closed = False
        self._bound: dict[int, tuple[Batch, BoundPlan]] = {}
        blas = ThreadpoolController().select(user_api="blas").lib_controllers
        self._blas = [library for library in blas if library.num_threads > 1]

    def rebound(self, prepared: Prepared) -> Self | None:
        """Return another session of the same model with other weights.

        It shares this session's plans, memory and threads: binding plans to other arrays takes a
        tenth of the time of compiling a small net, and a third for Darknet-53. Only one of the
        sessions computes at a time, so they may belong to different threads, and any of these
        threads may call this method. Close each session. Returns None if all sessions that share
        the plans are closed. Raise ``ShapeError`` for arrays of another model. One plan is bound
        here, each other one by ``bind`` or when it is used.
        """
        if not self._plans.join():
            return None
        other = copy(self)
        other._prepared, other._bound, other._is_closed = prepared, {}, False
        try:
            for batch_size in [*self._plans.compiled][-1:]:
                other._bind(batch_size)
        except BaseException:
            other.close()
            raise
        return other

    def bind(self) -> None:
        """Bind all plans ahead of calls, until ``close``. Another thread may compute meanwhile."""
        for batch_size in [*self._plans.compiled]:
            if not self._is_closed:
                self._bind(batch_size)

    def close(self) -> None:
        """Stop the threads, unless another session shares them."""
        if not self._is_closed:
            self._is_closed = True
            self._bound.clear()
            self._plans.leave()

    def __call__(self, inputs: Batch) -> NDArray[np.float32]:
        """Return outputs ``(N, *output_shape)`` of ``(N, *input_shape)``. Raise ``ShapeError``."""
        self._model.require_inputs(inputs)
        outputs = np.empty((len(inputs), *self._model.output_shape), self._model.output_dtype)
        with self._one_blas_thread():
            for start in range(0, len(inputs), self._batch_size):
                chunk = inputs[start : start + self._batch_size]
                batch, bound = self._bind(len(chunk))
                with self._plans.turn:
                    batch[: len(chunk)] = chunk
                    outputs[start : start + len(chunk)] = bound.run()[0][: len(chunk)]
        return outputs

    def warm_up(self, may_go_on: Callable[[], bool] = lambda: True) -> None:
        """Compile the plans for all batch sizes ahead of calls, and run the largest.

        All plans share the memory of the largest. Stops before a plan if ``may_go_on`` is false.
        """
        for batch_size in range(self._batch_size, 0, -1):
            if not may_go_on():
                return
            batch, bound = self._bind(batch_size)
            if batch_size == self._batch_size:
                with self._plans.turn:
                    batch.fill(0)
                    bound.run()

    @property
    def buffer_bytes(self) -> int:
        """Size of the working memory allocated so far, which sessions may share."""
        return self._plans.buffer_bytes

    def plan(self, batch_size: int) -> Plan:
        self._bind(batch_size)
        return self._plans.compiled[batch_size][0]

    def steps(self, batch_size: int) -> list[tuple[Expression, list[Call]]]:
        """Return the steps for a batch of this size in order, with their calls, for timing."""
        return self._bind(batch_size)[1].steps

    @contextmanager
    def _one_blas_thread(self) -> Iterator[None]:
        """Limit BLAS to one thread: the pool shares the work. threadpoolctl's takes 20 us."""
        threads = [library.num_threads for library in self._blas]
        try:
            for library in self._blas:
                library.set_num_threads(1)
            yield
        finally:
            for library, count in zip(self._blas, threads, strict=True):
                library.set_num_threads(count)

    def _bind(self, batch_size: int) -> tuple[Batch, BoundPlan]:
        if batch_size not in self._bound:
            self._bound[batch_size] = self._plans.bind(batch_size, self._prepared)
        return self._bound[batch_size]


class _Plans:
    """A model's plans by batch size and their working memory, for any weights.

    Sessions join, except for the first, and leave; the last to leave stops the threads. All plans
    use the same memory, so a session holds ``turn`` while it computes.
    """

    def __init__(
        self, model: Model, pool: ThreadPool, batch_size: int, reproducible: bool, compiled: bool
    ) -> None:
        self.turn = threading.Lock()
        self._model = model
        self._pool = pool
        self._arena = Arena()
        rows = max(batch_size, least_batch_size(model))
        self._inputs = np.zeros((rows, *model.input_shape), model.input_dtype)
        self._options = {"reproducible": reproducible, "compiled": compiled}
        self.compiled: dict[int, tuple[Plan, Mapping[str, Shape]]] = {}
        """By batch size, a plan and the shapes of its prepared arrays."""
        self._sessions: int | None = 1

    def join(self) -> bool:
        """Register a session; return False if the last session has already left."""
        with self.turn:
            if self._sessions is None:
                return False
            self._sessions += 1
            return True

    def leave(self) -> None:
        """Unregister a session; the last one closes the pool."""
        with self.turn:
            assert self._sessions
            self._sessions = self._sessions - 1 or None
        if self._sessions is None:
            self._pool.close()

    @property
    def buffer_bytes(self) -> int:
        """Size of the inputs, the intermediate arrays and the threads' scratch memory."""
        return self._inputs.nbytes + self._arena.size_bytes + self._pool.scratch_bytes

    def bind(self, batch_size: int, prepared: Prepared) -> tuple[Batch, BoundPlan]:
        """Return an array of ``least_batch_size`` inputs or more and its plan. Raise ShapeError."""
        rows = max(batch_size, least_batch_size(self._model))
        with self.turn:
            if batch_size not in self.compiled:
                graph = _specialised(self._model, rows, self._pool, **self._options)
                plan = compile(graph.outputs, self._pool, self._arena)
                shapes = {name: node.shape for name, node in graph.prepared.items()}
                self.compiled[batch_size] = plan, shapes
        plan, expected = self.compiled[batch_size]
        if (misfit := _misfit(expected, prepared)) is not None:
            raise misfit
        batch = self._inputs[:rows]
        return batch, plan.bind({INPUTS: batch, **prepared})


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float32)


def prepare(model: Model, weights: Vector) -> Prepared:
    """Return the weights as ``Inference`` needs them with any options, in new arrays.

    Filters have the layout of this machine's BLAS; another machine uses them more slowly.
    """
    graph = _preparation(model, fastest_gemm())
    arrays = evaluate(list(graph.prepared.values()), **model.layout.views(weights))
    return dict(zip(graph.prepared, arrays, strict=True))


def prepared_shapes(model: Model, gemm: Gemm) -> Mapping[str, Shape]:
    """Return the name and shape of every array that ``prepare`` returns for this model.

    ``gemm``: the matrix product of the machine that prepared them; ``fastest_gemm()`` for this one.
    """
    return {name: node.shape for name, node in _preparation(model, gemm).prepared.items()}


@lru_cache(maxsize=4)
def _preparation(model: Model, gemm: Gemm) -> Specialised:
    return _specialised(model, least_batch_size(model), ThreadPool(1, gemm))


def _gemm_of(model: Model, prepared: Prepared) -> Gemm:
    """Return the ``Gemm`` for whose layout ``prepared`` was made. Raise ``ShapeError``."""
    misfits = []
    for gemm in sorted(LAYOUTS, key=lambda each: each is not fastest_gemm()):
        misfit = _misfit(prepared_shapes(model, gemm), prepared)
        if misfit is None:
            return gemm
        misfits.append(misfit)
    raise misfits[0]


def import_kernels(loops: str = "epilogues") -> bool:
    """Import what all compiled kernels need, in a second; return False without ``fast``."""
    try:
        import_module(f"dist_net.autodiff.kernels.compiled.{loops}")
    except ImportError:
        return False
    return True


def _specialised(
    model: Model,
    batch_size: int,
    pool: ThreadPool,
    reproducible: bool = True,
    compiled: bool = False,
) -> Specialised:
    build = _marked if least_batch_size(model) > 1 else _graph
    shapes = dict(model.layout.shapes)
    return specialise(build(model, batch_size), shapes, pool, reproducible, compiled)


@lru_cache(maxsize=4)
def least_batch_size(model: Model) -> int:
    """Return 2 if a value other than the inputs has a row per input, such as a class token.

    With a single row, it could not be told from a value that fits any number of inputs.
    """
    nodes = topological_order(_marked(model, 2))
    return 1 + any(isinstance(each.operation, PerBatch) for each in nodes)


def _marked(model: Model, batch_size: int) -> list[Expression]:
    graphs = _graph(model, batch_size), _graph(model, batch_size + 1)
    return mark_per_batch(*graphs, dict(model.layout.shapes))


@lru_cache(maxsize=4)
def _graph(model: Model, batch_size: int) -> list[Expression]:
    return [model.network(model.input(batch_size), Scope())]


def _misfit(shapes: Mapping[str, Shape], prepared: Prepared) -> ShapeError | None:
    """Return an error if the arrays in ``prepared`` do not have these shapes, else None."""
    for name, shape in shapes.items():
        found = prepared[name].shape if name in prepared else None
        if found != shape:
            return ShapeError(
                f"the prepared kernels have shape {found} for {name}, expected {shape}: they "
                f"belong to another model; prepare them again"
            )
    return None


def write_prepared(path: Path, arrays: Mapping[str, Array], key: str) -> None:
    """Write the arrays of the source ``key`` atomically; raise ``PreparedKernelsError``."""
    checksums = {name: _checksum(name, np.ascontiguousarray(each)) for name, each in arrays.items()}
    try:
        with replacing(path) as partial:
            save_file(dict(arrays), partial, {KEY: key, CHECKSUMS: json.dumps(checksums)})
    except (OSError, SafetensorError) as error:
        raise PreparedKernelsError(
            f"cannot write the prepared kernels to {path}: {error}; "
            f"expected a directory with {sum(each.nbytes for each in arrays.values()):,} bytes free"
        ) from error


def map_prepared(path: Path, key: str) -> Prepared | None:
    """Map a file's arrays read-only; return None if there is no file with this ``key``.

    Every array is verified against its checksum. A damaged file is treated as missing.
    """
    try:
        content = np.memmap(path, np.uint8, "r")
        size = int.from_bytes(content[:8].tobytes(), "little")
        if not 0 < size <= min(MAX_HEADER, len(content) - 8):
            return None
        header = json.loads(content[8 : 8 + size].tobytes())
        metadata = header.pop("__metadata__", {})
        if metadata.get(KEY) != key:
            return None
        arrays = {name: _array(content[8 + size :], entry) for name, entry in header.items()}
        checksums = {name: _checksum(name, array) for name, array in arrays.items()}
        if checksums != json.loads(metadata[CHECKSUMS]):
            logger.warning("prepared_kernels_damaged file=%s action=prepare_again", path)
            return None
        return arrays
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _array(content: NDArray[np.uint8], entry: dict[str, Any]) -> Array:
    start, stop = entry["data_offsets"]
    array: Array = content[start:stop].view(DTYPES[entry["dtype"]])
    return array.reshape(entry["shape"], copy=False)


def _checksum(name: str, array: Array) -> int:
    """Return the CRC-32 of the array, its name, dtype and shape; detects damage, not tampering."""
    described = repr((name, array.dtype.str, array.shape)).encode()
    return crc32(array.reshape(-1, copy=False).view(np.uint8).data, crc32(described))


def key_of(model: Model, weights: Path) -> str:
    """Return the key of arrays made from a file: of model, BLAS and content. Raise ``OSError``."""
    with weights.open("rb") as file:
        return _key(model, hashlib.file_digest(file, "sha256").digest())


def key_of_vector(model: Model, weights: Vector) -> str:
    """Return the key of arrays prepared from a weight vector, as in ``key_of``."""
    return _key(model, hashlib.sha256(np.ascontiguousarray(weights).data).digest())


def _key(model: Model, weights: bytes) -> str:
    """Return the SHA-256 of what determines the arrays: ``weights``, layout and graph.

    The graph is its operations with their settings, its connections and constants.
    """
    digest = hashlib.sha256(weights)
    shapes = prepared_shapes(model, fastest_gemm())
    digest.update(repr((FORMAT, shapes)).encode())
    nodes = topological_order([model.network(model.input(1), Scope())])
    number_of = {id(node): number for number, node in enumerate(nodes)}
    for node in nodes:
        operation = node.operation
        digest.update(f"{type(operation).__module__}.{type(operation).__qualname__}".encode())
        if isinstance(operation, Constant):
            digest.update(operation.value.tobytes())
        else:
            with np.printoptions(threshold=sys.maxsize, floatmode="unique"):
                digest.update(repr(operation).encode())
        inputs = [number_of[id(each)] for each in node.inputs]
        digest.update(repr((inputs, node.shape, node.dtype.str)).encode())
    return digest.hexdigest()
