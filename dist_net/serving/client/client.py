"""``Client``: sends requests to the inference pool from Python, over ZeroMQ.

with Client("tcp://127.0.0.1:5600") as client:
    print(client.classify("darknet53", "dog.jpg"))
    outputs = client.predict("digits", images)
    pending = [client.submit("digits", image) for image in images]
    versions = [each.result().version for each in pending]
"""

import json
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, suppress
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

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
    ProtocolError,
    ReloadError,
    RequestCancelledError,
    RequestExpiredError,
    RequestFailedError,
    RequestTooLargeError,
    ShapeError,
)
from dist_net.images.labels import Prediction, is_unknown, top_predictions
from dist_net.nets.tensor_specs import Inputs, Tensors, fitting_inputs, from_bytes, to_bytes
from dist_net.serving.client.conversation import (
    SILENCE_S,
    ClientRequest,
    Conversation,
    Deadline,
    Exchange,
    GatewayReply,
)
from dist_net.serving.pool.description import ModelSummary, VersionSummary, known, summary_from_json
from dist_net.serving.pool.requests import Status
from dist_net.spelling import suggestion
from dist_net.wire.messages import Refuse
from dist_net.wire.security import CLIENT, PeerKeys, load_peer_keys
from dist_net.wire.serving_messages import (
    MAX_REQUEST_BYTES,
    Answer,
    Ask,
    ClientMessage,
    Describe,
    Description,
    OperatorMessage,
    Reload,
    Reloaded,
    Unload,
)
from dist_net.wire.transport import ClientSocket

ImageInput = str | Path | bytes | NDArray[np.uint8]
"""The path of an image, the bytes of its file, or its pixels: (H, W), (H, W, 1) or (H, W, 3)."""

MAX_OPEN = 256
"""The maximum number of open requests; a further request waits."""

PARTS_OPEN = 16
"""The maximum number of open requests for one prediction of many rows."""

HIGH_WATER_MARK = 4 * MAX_OPEN  # each may be sent, sent again and cancelled, with room to spare
POLL_S = SILENCE_S / 2
SLICE_S = 0.005
"""The longest time that a message of another thread waits for the thread that receives."""

ERRORS: dict[int, Callable[[str], DistNetError]] = {
    Status.BAD_INPUT: BadRequestError,
    Status.NOT_FOUND: ModelNotServedError,
    Status.EXPIRED: RequestExpiredError,
    Status.FAILED: RequestFailedError,
    Status.CANCELLED: RequestCancelledError,
}

ReplyKind = TypeVar("ReplyKind", Answer, Description, Reloaded)


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


@dataclass(slots=True, eq=False, repr=False)
class Pending:
    """A request whose result is pending."""

    _connection: "GatewayConnection"
    _exchange: Exchange
    _rows: int | None  # None for an input without that axis
    _known: VersionSummary
    _is_outdated: Callable[[], None]  # called if the answer shows that the model has changed

    def result(self) -> Outputs:
        """Wait for the answer; may be called again.

        Raise BadRequestError, ModelNotServedError, PoolUnavailableError, RequestExpiredError,
        RequestFailedError, RequestCancelledError, and NoAnswerError if the gateway is silent.
        """
        try:
            answer = self._connection.reply_to(self._exchange, Answer)
        except BadRequestError:
            self._is_outdated()
            raise
        try:
            specs, is_batched = self._known.outputs, self._known.is_batched
            labels, unknown_below = self._known.labels, self._known.unknown_below
            has_classes = self._known.has_classes
            if len(answer.payloads) > 1:
                others = [json.loads(bytes(each)) for each in answer.payloads[1:]]
                labels = tuple(map(str, others[0]))
                unknown_below = float(others[1]) if len(others) > 1 else 0.0
                has_classes = bool(labels)
                specs = (specs[0]._replace(shape=(len(labels),)),)
                self._is_outdated()
            tensors = from_bytes(answer.payloads[0], specs, is_batched)
            if is_batched and self._rows is None:
                tensors = {name: array[0] for name, array in tensors.items()}
            version, times = int(answer.version), (answer.queue_s, answer.compute_s)
            return Outputs(tensors, version, *times, labels, unknown_below, has_classes)
        except (ValueError, IndexError, TypeError, RecursionError) as error:
            raise unexpected(answer) from error

    def cancel(self) -> None:
        """Cancel the request: it does not run if it is still queued. A received answer stays."""
        self._connection.cancel(self._exchange)


class Client(AbstractContextManager["Client"]):
    """Connected to a pool's gateway. Threads may share it; no call waits for another's.

    ``dist-net serve`` prints ``address`` as ``zmq=``; ``keys`` is the directory of this client's
    keys. Calls without ``timeout_s`` use the constructor's. The client reconnects after a loss, and
    sends open requests again after a restart of the gateway. It starts no threads: all work happens
    inside calls. Raise AddressError, KeyFileError and InsecureAddressError.
    """

    def __init__(
        self, address: str, keys: str | Path | None = None, timeout_s: float = 10.0
    ) -> None:
        worker_keys = load_peer_keys(Path(keys), CLIENT) if keys is not None else None
        self._connection = GatewayConnection(address, worker_keys)
        self._timeout_s = timeout_s
        self._summaries: dict[str, ModelSummary] = {}

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancel open requests and close, after a short wait for messages to leave."""
        self._connection.close()

    def models(self) -> list[ModelSummary]:
        """Return the served models. Raise NoAnswerError or RequestExpiredError."""
        deadline = self._deadline(None)
        names, _ = self._described(self._describe("", deadline))
        asked = [self._describe(name, deadline) for name in names]
        found = [summary for _, summary in map(self._described, asked) if summary is not None]
        self._summaries = {summary.name: summary for summary in found}
        return found

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
        deadline = self._deadline(timeout_s)
        tensors, rows, _ = self._fitting(model, version, inputs, deadline)
        size = self._summaries[model].max_batch_size
        if rows is None or rows <= size:
            return self._submit_inputs(model, inputs, version, deadline).result()
        if version is None:
            self._summaries.pop(model, None)  # its newest version may have been replaced long ago
            version = self._summary(model, None, deadline).version
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
        """Send a request to a model; wait only while 256 requests are open.

        ``inputs``: (rows, *shape), or one row without the first axis; copied, and converted to the
        version's type if NumPy permits ``same_kind``. Several inputs are a mapping, and so are
        those of a model that does not compute rows. ``version`` None selects the newest. Raise
        ShapeError, DTypeError, RequestTooLargeError, ModelNotServedError, PoolUnavailableError.
        """
        return self._submit_inputs(model, inputs, version, self._deadline(timeout_s))

    def submit_image(
        self,
        model: str,
        image: ImageInput,
        version: int | None = None,
        timeout_s: float | None = None,
    ) -> Pending:
        """Send an image like ``submit``, for a worker to decode. Also raise ImageError."""
        payload, deadline = encoded(image), self._deadline(timeout_s)
        summary = self._summary(model, version, deadline)
        return self._submit(model, summary, payload, True, None, version, deadline)

    def reload(self, model: str, timeout_s: float | None = None) -> int:
        """Read a model again; return its version. Raise ReloadError; then the old one stays."""
        return self._reload(Reload(self._connection.next_id(), model), timeout_s)

    def unload(self, model: str, timeout_s: float | None = None) -> None:
        """Stop serving a model until it is reloaded. Raise ReloadError."""
        self._reload(Unload(self._connection.next_id(), model), timeout_s)

    def _reload(self, request: Reload | Unload, timeout_s: float | None) -> int:
        exchange = self._connection.send(request, self._deadline(timeout_s))
        reloaded = self._connection.reply_to(exchange, Reloaded)
        if reloaded.reason:
            raise ReloadError(reloaded.reason)
        self._summaries.pop(request.model, None)
        return int(reloaded.version or 0)

    def _submit_inputs(
        self, model: str, inputs: Inputs, version: int | None, deadline: Deadline
    ) -> Pending:
        tensors, rows, summary = self._fitting(model, version, inputs, deadline)
        payload = bytes(to_bytes(tensors, summary.inputs, summary.is_batched))
        return self._submit(model, summary, payload, False, rows, version, deadline)

    def _submit(
        self,
        model: str,
        summary: VersionSummary,
        payload: bytes,
        is_image: bool,
        rows: int | None,
        version: int | None,
        deadline: Deadline,
    ) -> Pending:
        if len(payload) > MAX_REQUEST_BYTES:
            raise RequestTooLargeError(
                f"a request of {len(payload):,} bytes for model {model!r}; expected at most "
                f"{MAX_REQUEST_BYTES:,}. Send fewer rows, or a smaller image"
            )
        named = "" if version is None else str(version)
        request_id, payloads = self._connection.next_id(), (payload, known(summary))
        request = Ask(request_id, model, named, is_image, deadline.timeout_s, payloads)
        exchange = self._connection.send(request, deadline)
        return Pending(self._connection, exchange, rows, summary, self._summaries.clear)

    def _deadline(self, timeout_s: float | None) -> Deadline:
        return Deadline.after(self._timeout_s if timeout_s is None else timeout_s, time.monotonic())

    def _describe(self, model: str, deadline: Deadline) -> Exchange:
        return self._connection.send(Describe(self._connection.next_id(), model), deadline)

    def _described(self, exchange: Exchange) -> tuple[list[str], ModelSummary | None]:
        """Return the names of the models, and the summary of the model of a ``Describe``."""
        description = self._connection.reply_to(exchange, Description)
        text, *summary = map(bytes, description.payloads or (b"[]",))
        try:
            names = [str(name) for name in json.loads(text)]
        except (ValueError, TypeError, RecursionError) as error:
            raise ProtocolError(f"invalid names of models: {text[:80]!r} ({error})") from error
        return names, summary_from_json(*summary) if summary else None

    def _fitting(
        self, model: str, version: int | None, inputs: Inputs, deadline: Deadline
    ) -> tuple[Tensors, int | None, VersionSummary]:
        """Return inputs that fit, and their rows; request a new summary if they do not fit."""
        summary = self._summary(model, version, deadline)
        try:
            return *fitting_inputs(inputs, summary.inputs, summary.is_batched, model), summary
        except (ShapeError, DTypeError):
            self._summaries.clear()
        summary = self._summary(model, version, deadline)
        return *fitting_inputs(inputs, summary.inputs, summary.is_batched, model), summary

    def _summary(self, model: str, version: int | None, deadline: Deadline) -> VersionSummary:
        """Return the summary of a version or the newest, from the gateway if unknown."""
        summary = self._summaries.get(model)
        is_known = version is None or (summary is not None and summary.of_version(version))
        if summary is None or not summary.inputs or not is_known:
            names, summary = self._described(self._describe(model, deadline))
            if summary is None:
                raise ModelNotServedError(f"no model {model!r}; {suggestion(model, names)}")
            self._summaries[model] = summary
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


class GatewayConnection:
    """Reconnects after a loss. Threads may share it: one of those that wait receives for all.

    The receiving thread holds no lock during the wait. The others leave their messages to it in
    ``_unsent``, as two threads must not use a ZeroMQ socket at once; it looks every ``SLICE_S``.
    Raise AddressError, and InsecureAddressError for an address beyond loopback without keys.
    """

    def __init__(self, address: str, keys: PeerKeys | None) -> None:
        self._socket = ClientSocket(address, keys, high_water_mark=HIGH_WATER_MARK)
        self._address = address
        self._conversation = Conversation(first_id=secrets.randbits(62))
        self.next_id = self._conversation.next_id
        self._changed = threading.Condition()
        self._is_receiving = False
        self._unsent: deque[ClientMessage | OperatorMessage] = deque()
        self._checked_s = time.monotonic()
        self._socket.send(self._conversation.ping(self._checked_s))

    def close(self) -> None:
        """Cancel open requests and close, after a short wait for messages to leave."""
        with self._changed:
            self._unsent.extend(self._conversation.cancel_all())
            self._changed.wait_for(lambda: not self._is_receiving)
            with closing(self._socket), suppress(NoAnswerError):  # the gateway is gone
                self._send_unsent()

    def send(self, request: ClientRequest, deadline: Deadline) -> Exchange:
        """Send a request; wait only while ``MAX_OPEN`` others have no reply.

        Raise RequestExpiredError at the deadline, and NoAnswerError if the socket's queue is full.
        """
        with self._changed:
            if len(self._conversation) >= MAX_OPEN:
                self._receive_until(lambda: len(self._conversation) < MAX_OPEN, deadline)
            exchange = self._conversation.open(request, deadline)
            self._send(request)
            return exchange

    def cancel(self, exchange: Exchange) -> None:
        """Cancel a request, unless it has its reply."""
        with self._changed:
            if exchange.reply is None:
                self._send(self._conversation.cancel(exchange))
                self._changed.notify_all()

    def reply_to(self, exchange: Exchange, kind: type[ReplyKind]) -> ReplyKind:
        """Await the reply. Raise an ``Answer``'s error, NoAnswerError or ProtocolError."""
        if exchange.reply is None:
            with self._changed:
                self._receive_until(lambda: exchange.reply is not None)
        reply = exchange.reply
        if isinstance(reply, Answer) and reply.status != Status.OK:
            raise self._error(reply, exchange)
        if not isinstance(reply, kind):
            raise unexpected(reply)
        return reply

    def _receive_until(self, is_done: Callable[[], bool], deadline: Deadline | None = None) -> None:
        """Wait until ``is_done``; raise RequestExpiredError at the deadline. Holds the lock."""
        while not is_done():
            left_s = POLL_S if deadline is None else deadline.at_s - time.monotonic()
            if left_s <= 0:
                raise RequestExpiredError(
                    f"{MAX_OPEN} requests of this client are open and none was answered in time; "
                    f"allow more time"
                )
            if self._is_receiving:
                self._changed.wait(min(left_s, POLL_S))
            else:
                self._receive(min(left_s, SLICE_S))

    def _receive(self, timeout_s: float) -> None:
        """Process what arrives within the timeout, without the lock during the wait."""
        self._is_receiving = True
        self._changed.release()
        try:
            message = self._socket.receive(timeout_s)
        finally:
            self._changed.acquire()
            self._is_receiving = False
            self._changed.notify_all()
        now = time.monotonic()
        if isinstance(message, Refuse):
            raise ProtocolError(f"the gateway at {self._address} refused: {message.reason}")
        if message is not None:
            self._unsent.extend(self._conversation.heard(message, now))
        if now >= self._checked_s + SLICE_S and not self._socket.has_message():
            self._checked_s = now
            self._unsent.extend(self._conversation.check(now))
        if self._unsent:
            self._send_unsent()

    def _send(self, message: ClientMessage | OperatorMessage) -> None:
        if self._is_receiving:
            self._unsent.append(message)
        else:
            self._socket.send(message)

    def _send_unsent(self) -> None:
        while self._unsent:
            self._socket.send(self._unsent.popleft())

    def _error(self, answer: Answer, exchange: Exchange) -> DistNetError:
        if answer.status == Status.UNAVAILABLE:
            return PoolUnavailableError(answer.reason, answer.retry_after_s)
        if answer.status == Status.EXPIRED and not answer.reason:  # given up on this side
            if self._conversation.heard_s < time.monotonic() - 2 * SILENCE_S:
                return self._socket.no_answer(exchange.deadline.timeout_s)
            return RequestExpiredError(
                f"no answer within {exchange.deadline.timeout_s:g} s, though the gateway is there: "
                f"allow more time, or add workers"
            )
        if answer.status not in ERRORS:
            return unexpected(answer)
        return ERRORS[answer.status](answer.reason or "cancelled: it has no result")


def unexpected(reply: GatewayReply | None) -> ProtocolError:
    """Return the error for a reply that does not fit its request."""
    return ProtocolError(
        f"the gateway's reply does not fit the request: {str(reply)[:200]}; install the same "
        f"release of dist-net on both hosts"
    )
