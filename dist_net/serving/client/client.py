"""``Client``: sends requests to the inference pool from Python, over HTTP.

with Client("http://127.0.0.1:8000") as client:
    print(client.classify("darknet53", "dog.jpg"))
    outputs = client.predict("digits", images)
    pending = [client.submit("digits", image) for image in images]
    versions = [each.result().version for each in pending]
"""

import json
import re
import struct
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dist_net.errors import (
    BadRequestError,
    DistNetError,
    DTypeError,
    ImageError,
    ModelNotServedError,
    NoAnswerError,
    PoolUnavailableError,
    ReloadError,
    RequestCancelledError,
    RequestExpiredError,
    RequestTooLargeError,
    ShapeError,
)
from dist_net.images.labels import Prediction, is_unknown, top_predictions
from dist_net.nets.tensor_specs import Inputs, Tensors, TensorSpec, fitting_inputs
from dist_net.serving.client.gateway_connection import (
    Exchange,
    GatewayConnection,
    HttpAnswer,
    unexpected,
)
from dist_net.serving.pool.description import ModelSummary, VersionSummary, summary_from_json
from dist_net.wire.serving_messages import MAX_REQUEST_BYTES

ImageInput = str | Path | bytes | NDArray[np.uint8]
"""The path of an image, the bytes of its file, or its pixels: (H, W), (H, W, 1) or (H, W, 3)."""

MAX_OPEN = 128
"""The maximum number of open requests of ``submit``, each on a connection; a further one waits."""

MAX_TENSORS_BYTES = MAX_REQUEST_BYTES - (1 << 16)
"""The maximum size of the tensors or the image of a request; the rest is for their description."""

PARTS_OPEN = 16
"""The maximum number of open requests for one prediction of many rows."""

_JSON_LENGTH = "inference-header-content-length"
_TIMES = re.compile(r"(\w+);dur=([0-9.e+-]+)")  # of the header Server-Timing, in milliseconds
_BYTES_LENGTH = struct.Struct("<I")  # before an element of BYTES


@dataclass(frozen=True)
class Outputs:
    """The outputs of a version of a model.

    ``values``: the first output, (rows, outputs), read-only; (outputs,) for one image, or for one
    row without the first axis. ``tensors``: all outputs by name. ``queue_s``: from admission to
    dispatch; ``compute_s``: the network's time for the whole batch, or batches. ``unknown_below``:
    the threshold of known classes, or 0.
    """

    tensors: Tensors
    version: int
    queue_s: float
    compute_s: float
    labels: tuple[str, ...]
    unknown_below: float = 0.0
    has_classes: bool = True

    @property
    def values(self) -> NDArray[Any]:
        return next(iter(self.tensors.values()))

    @property
    def probabilities(self) -> NDArray[np.float32]:
        """The ``values`` of a model with classes; raise BadRequestError for any other."""
        if not self.has_classes:
            raise BadRequestError("the model predicts numbers, not classes; read Outputs.values")
        return self.values

    def likeliest(self, top: int = 5, row: int = 0) -> list[Prediction]:
        """Return the ``top`` likeliest classes of a row, likeliest first."""
        return top_predictions(np.atleast_2d(self.probabilities)[row], self.labels, top)

    def is_unknown(self, row: int = 0) -> bool:
        """Return whether no class of a row is as probable as ``unknown_below``."""
        return is_unknown(self.likeliest(1, row), self.unknown_below)


class Question(NamedTuple):
    """A request for the outputs of a model: its inputs, or an image, as the protocol sends them.

    ``rows`` is None for an input without that axis. ``version`` None selects the newest.
    ``summary`` is of the time of the request; its answer may come when the pool has replaced the
    version that computed it.
    """

    model: str
    version: int | None
    inputs: list[dict[str, Any]]
    payloads: list[bytes]
    rows: int | None
    summary: VersionSummary

    def body(self, timeout_s: float) -> tuple[bytes, int]:
        """Return the body, and the length of the JSON in it."""
        parameters = {"binary_data_output": True, "timeout": max(1, round(timeout_s * 1e6))}
        text = json.dumps({"inputs": self.inputs, "parameters": parameters}).encode()
        return b"".join((text, *self.payloads)), len(text)

    def require_size(self) -> None:
        """Raise RequestTooLargeError for a request that a gateway would refuse."""
        size_bytes = sum(map(len, self.payloads))
        if size_bytes > MAX_TENSORS_BYTES:
            raise RequestTooLargeError(
                f"a request of {size_bytes:,} bytes for model {self.model!r}; expected at most "
                f"{MAX_TENSORS_BYTES:,}. Send fewer rows, or a smaller image"
            )

    @property
    def path(self) -> str:
        version = "" if self.version is None else f"/versions/{self.version}"
        return f"{_path(self.model)}{version}/infer"


def _path(model: str, prefix: str = "/v2/models") -> str:
    return f"{prefix}/{quote(model, safe='')}"


class Pending:
    def __init__(self, future: Future[Outputs], exchange: Exchange) -> None:
        self._future = future
        self._exchange = exchange

    def result(self) -> Outputs:
        """Wait for the answer; may be called again.

        Raise BadRequestError, ModelNotServedError, PoolUnavailableError, RequestExpiredError,
        RequestFailedError, RequestCancelledError, and NoAnswerError if the gateway is silent.
        """
        try:
            return self._future.result()
        except CancelledError:
            raise RequestCancelledError("cancelled: it has no result") from None

    def cancel(self) -> None:
        """Cancel the request: it does not run if it is still queued. A received answer stays."""
        if not self._future.cancel():
            self._exchange.cancel()


class Client(AbstractContextManager["Client"]):
    """Connected to a pool's gateway. Threads may share it; no call waits for another's.

    ``dist-net serve`` prints ``address`` as ``http=``; its ``--token-file`` contains ``token``.
    ``certificates``: a PEM file with the authorities of an https address, by default the system's.
    Calls without ``timeout_s`` use the constructor's. A call waits for a gateway that restarts; a
    request that was sent is not sent again. Only ``submit`` and long predictions start threads.
    Raise AddressError and KeyFileError.
    """

    def __init__(
        self,
        address: str,
        token: str | None = None,
        timeout_s: float = 10.0,
        certificates: str | Path | None = None,
    ) -> None:
        authorities = None if certificates is None else Path(certificates)
        self._connection = GatewayConnection(address, token, authorities, MAX_OPEN)
        self._timeout_s = timeout_s
        self._summaries: dict[str, ModelSummary] = {}
        self._threads = ThreadPoolExecutor(MAX_OPEN, "dist-net-client")
        self._room = threading.BoundedSemaphore(MAX_OPEN)
        self._open: dict[Pending, None] = {}

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for pending in list(self._open):
            pending.cancel()
        self._threads.shutdown()
        self._connection.close()

    def models(self) -> list[ModelSummary]:
        """Return the served models. Raise NoAnswerError."""
        exchange = self._exchange()
        models = self._connection.send("GET", "/v1/models", exchange).json()
        try:
            names = [str(each["name"]) for each in models]
        except (TypeError, KeyError) as error:
            raise unexpected(repr(models).encode()) from error
        found = [self._described(name, exchange) for name in names]
        self._summaries = {summary.name: summary for summary in found}
        return found

    def status(self) -> dict[str, Any]:
        answer = self._connection.send("GET", "/pool", self._exchange()).json()
        if not isinstance(answer, dict):
            raise unexpected(repr(answer).encode())
        return answer

    def predict(self, model: str, inputs: Inputs, timeout_s: float | None = None) -> Any:
        """Return the output, or a dict of several; of classes, probabilities. See ``infer``."""
        outputs = self.infer(model, inputs, timeout_s=timeout_s)
        return outputs.tensors if len(outputs.tensors) > 1 else outputs.values

    def probabilities(
        self, model: str, inputs: Inputs, timeout_s: float | None = None
    ) -> NDArray[np.float32]:
        """Return probabilities, (rows, classes). Raise BadRequestError without; see ``infer``."""
        return self.infer(model, inputs, timeout_s=timeout_s).probabilities

    def infer(
        self, model: str, inputs: Inputs, version: int | None = None, timeout_s: float | None = None
    ) -> Outputs:
        """Return the outputs of a model for ``inputs``: ``submit`` and ``Pending.result``.

        More rows than the gateway's batch are sent as several requests to one version, each with
        ``timeout_s``. Also raise ModelNotServedError if the version is replaced meanwhile.
        """
        exchange = self._exchange(timeout_s)
        tensors, rows, summary = self._fitting(model, version, inputs, exchange)
        size = self._summaries[model].max_batch_size
        if rows:
            row_bytes = sum(array.nbytes for array in tensors.values()) // rows
            size = max(1, min(size, MAX_TENSORS_BYTES // max(1, row_bytes)))
        if rows is None or rows <= size:
            question = self._question(model, tensors, rows, version, summary)
            question.require_size()
            return self._ask(question, exchange)
        if version is None:
            self._summaries.pop(model, None)  # its newest version may have been replaced long ago
            version = self._summary(model, None, exchange).version
        outputs: list[Outputs] = []
        pending: deque[Pending] = deque()
        for start in range(0, rows, size):
            part = {name: array[start : start + size] for name, array in tensors.items()}
            if len(pending) == PARTS_OPEN:
                outputs.append(pending.popleft().result())
            pending.append(self.submit(model, part, version, timeout_s))
        outputs += [each.result() for each in pending]
        return replace(
            outputs[0],
            tensors={
                name: np.concatenate([each.tensors[name] for each in outputs])
                for name in outputs[0].tensors
            },
            queue_s=max(each.queue_s for each in outputs),
            compute_s=sum(each.compute_s for each in outputs),
        )

    def classify(
        self, model: str, image: ImageInput, top: int = 5, timeout_s: float | None = None
    ) -> list[Prediction]:
        """Return the ``top`` likeliest classes; see ``submit_image`` and ``Pending.result``."""
        return self.submit_image(model, image, timeout_s=timeout_s).result().likeliest(top)

    def submit(
        self, model: str, inputs: Inputs, version: int | None = None, timeout_s: float | None = None
    ) -> Pending:
        """Send a request to a model; wait only while ``MAX_OPEN`` requests are open.

        ``inputs``: (rows, *shape), or one row without the first axis; copied, and converted to the
        version's type if NumPy permits ``same_kind``. Several inputs are a mapping, and also the
        inputs of a model that does not compute rows. ``version`` None selects the newest. Raise
        ShapeError, DTypeError, RequestTooLargeError, ModelNotServedError, PoolUnavailableError.
        """
        exchange = self._exchange(timeout_s)
        tensors, rows, summary = self._fitting(model, version, inputs, exchange)
        return self._submit(self._question(model, tensors, rows, version, summary), exchange)

    def submit_image(
        self,
        model: str,
        image: ImageInput,
        version: int | None = None,
        timeout_s: float | None = None,
    ) -> Pending:
        """Send an image like ``submit``, for a worker to decode. Also raise ImageError."""
        content, exchange = encoded(image), self._exchange(timeout_s)
        summary = self._summary(model, version, exchange)
        payload = _BYTES_LENGTH.pack(len(content)) + content
        spec = summary.inputs[0]._replace(datatype="BYTES")
        inputs = [_input(spec, (1,), payload)]
        return self._submit(Question(model, version, inputs, [payload], None, summary), exchange)

    def reload(self, model: str, timeout_s: float | None = None, share: float = 1.0) -> int:
        """Read a model again; return its version. Raise ReloadError; then the old one stays.

        With a ``share`` below 1 the new version gets this share of the requests, until ``confirm``
        or ``rollback``, or until it is found to be worse.
        """
        return int(self._ruled(model, "load", timeout_s, share=share)["version"])

    def confirm(self, model: str, timeout_s: float | None = None) -> int:
        """End a rollout in favor of the new version; return its number. Raise ReloadError."""
        return int(self._ruled(model, "confirm", timeout_s)["version"])

    def rollback(self, model: str, timeout_s: float | None = None) -> int:
        """End a rollout in favor of the old version; return its number. Raise ReloadError."""
        return int(self._ruled(model, "rollback", timeout_s)["version"])

    def unload(self, model: str, timeout_s: float | None = None) -> None:
        """Stop serving a model until it is reloaded. Raise ReloadError."""
        self._ruled(model, "unload", timeout_s)

    def _ruled(self, model: str, action: str, timeout_s: float | None, **parameters: float) -> Any:
        path = f"{_path(model, '/v2/repository/models')}/{action}"
        exchange = self._exchange(timeout_s)
        try:
            body = json.dumps({"parameters": parameters}).encode()
            answer = self._connection.send("POST", path, exchange, body).json()
        except NoAnswerError:  # nor access
            raise
        except DistNetError as error:
            raise ReloadError(str(error)) from error
        self._summaries.pop(model, None)
        return answer

    def _question(
        self,
        model: str,
        tensors: Tensors,
        rows: int | None,
        version: int | None,
        summary: VersionSummary,
    ) -> Question:
        arrays = [np.ascontiguousarray(tensors[of.name], of.dtype) for of in summary.inputs]
        payloads = [array.tobytes() for array in arrays]
        shapes = [tensors[of.name].shape for of in summary.inputs]
        inputs = list(map(_input, summary.inputs, shapes, payloads))
        return Question(model, version, inputs, payloads, rows, summary)

    def _submit(self, question: Question, exchange: Exchange) -> Pending:
        """Send a request from a thread; wait only while ``MAX_OPEN`` others have no answer."""
        question.require_size()
        if not self._room.acquire(timeout=max(0.0, exchange.left_s)):
            raise RequestExpiredError(
                f"{MAX_OPEN} requests of this client are open and none was answered in time; "
                f"allow more time"
            )
        pending = Pending(self._threads.submit(self._ask, question, exchange), exchange)
        self._open[pending] = None
        pending._future.add_done_callback(partial(self._ended, pending))
        return pending

    def _ended(self, pending: Pending, _: Future[Outputs]) -> None:
        self._open.pop(pending, None)
        self._room.release()

    def _ask(self, question: Question, exchange: Exchange) -> Outputs:
        """Send a request and return the outputs, with the classes of the version that answered."""
        body, json_bytes = question.body(exchange.left_s)
        headers = {_JSON_LENGTH: str(json_bytes)}
        try:
            answer = self._connection.send("POST", question.path, exchange, body, headers)
        except BadRequestError:
            self._summaries.clear()  # the model may have changed
            raise
        version, tensors = _tensors(answer)
        model, summary = question.model, question.summary
        known = summary.of_version(version) or self._summary(model, version, exchange)
        if summary.is_batched and question.rows is None:
            tensors = {name: array[0] for name, array in tensors.items()}
        times = dict(_TIMES.findall(answer.headers.get("server-timing", "")))
        queue_s, compute_s = (float(times.get(name, 0)) / 1e3 for name in ("queue", "compute"))
        classes = known.labels, known.unknown_below, known.has_classes
        return Outputs(tensors, version, queue_s, compute_s, *classes)

    def _exchange(self, timeout_s: float | None = None) -> Exchange:
        return Exchange(self._timeout_s if timeout_s is None else timeout_s)

    def _described(self, model: str, exchange: Exchange) -> ModelSummary:
        path = _path(model, "/v1/models")
        return summary_from_json(self._connection.send("GET", path, exchange).body)

    def _fitting(
        self, model: str, version: int | None, inputs: Inputs, exchange: Exchange
    ) -> tuple[Tensors, int | None, VersionSummary]:
        """Return inputs that fit, and their rows; request a new summary if they do not fit."""
        summary = self._summary(model, version, exchange)
        try:
            return *fitting_inputs(inputs, summary.inputs, summary.is_batched, model), summary
        except (ShapeError, DTypeError):
            self._summaries.clear()
        summary = self._summary(model, version, exchange)
        return *fitting_inputs(inputs, summary.inputs, summary.is_batched, model), summary

    def _summary(self, model: str, version: int | None, exchange: Exchange) -> VersionSummary:
        """Return the summary of a version or the newest, from the gateway if unknown."""
        summary = self._summaries.get(model)
        is_known = version is None or (summary is not None and summary.of_version(version))
        if summary is None or not summary.inputs or not is_known:
            summary = self._summaries[model] = self._described(model, exchange)
        if summary.is_unloaded:
            raise ModelNotServedError(f"{model} is not served: {summary.reason}; load it first")
        if not summary.inputs:
            raise PoolUnavailableError(f"model {model!r} is not available: {summary.reason}")
        if version is None:
            return summary
        named = summary.of_version(version)
        if named is None:
            raise ModelNotServedError(
                f"model {model!r} has no version {version}; expected one of "
                f"{', '.join(map(str, summary.versions)) or 'none'}"
            )
        return named


def encoded(image: ImageInput) -> bytes:
    """Return the bytes of an image's file, or of a PNG for pixels. Raise ImageError."""
    if isinstance(image, bytes):
        return image
    try:
        if isinstance(image, str | Path):
            return Path(image).read_bytes()
        pixels = image[..., 0] if image.shape[2:] == (1,) else image
        file = BytesIO()
        Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    except OSError as error:
        raise ImageError(f"{image}: {error.strerror}; expected the file of an image") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise ImageError(
            f"{error}; expected an image's path, the bytes of its file, or its pixels, (H, W), "
            f"(H, W, 1) or (H, W, 3) uint8"
        ) from error
    return file.getvalue()


def _input(spec: TensorSpec, shape: Sequence[int], payload: bytes) -> dict[str, Any]:
    size = {"binary_data_size": len(payload)}
    return {"name": spec.name, "shape": shape, "datatype": spec.datatype, "parameters": size}


def _tensors(answer: HttpAnswer) -> tuple[int, Tensors]:
    """Return the version that answered, and its outputs, read-only. Raise ProtocolError."""
    try:
        end = int(answer.headers[_JSON_LENGTH])
        content = json.loads(answer.body[:end])
        sizes = [each["parameters"]["binary_data_size"] for each in content["outputs"]]
        tensors = {}
        for each, (start, stop) in zip(
            content["outputs"], pairwise(accumulate(sizes, initial=end)), strict=True
        ):
            dtype = TensorSpec(each["name"], each["datatype"], ()).dtype
            raw = memoryview(answer.body)[start:stop]
            tensors[each["name"]] = np.frombuffer(raw, dtype).reshape(each["shape"], copy=False)
        return int(content["model_version"]), tensors
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise unexpected(answer.body) from error
