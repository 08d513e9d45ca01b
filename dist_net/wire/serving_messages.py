"""The messages of the inference pool, one named tuple each; pure data.

Clients and workers connect to different sockets of the gateway, so a client cannot act as a worker.

    client                            gateway
    Ask             ──────────────▶   Answer, later
    Cancel          ──────────────▶   (none)
    Describe        ──────────────▶   Description
    Reload, Unload  ──────────────▶   Reloaded, later
    Ping            ──────────────▶   Pong

    inference worker                  gateway
    JoinPool        ──────────────▶   PoolWelcome | Refuse
                    ◀──────────────   Load, Drop
    Loaded          ──────────────▶
    FetchArrays     ──────────────▶   ArraysPiece
                    ◀──────────────   RunBatch
    BatchDone       ──────────────▶
    Heartbeat       ──────────────▶   Alive, on both connections | Refuse
                    ◀──────────────   Stop
    Leave           ──────────────▶   (none)

Times are durations in seconds, because the clocks of hosts differ.
"""

import re
from typing import Annotated, NamedTuple

from dist_net.wire.fields import MAX_PAYLOADS, Document, HostName, Limits, Name, Payloads, Reason

MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""A served model's name; it is part of URLs and of file names on the workers' hosts."""

ARRAYS_KEY = re.compile("[0-9a-f]{64}")
"""The SHA-256 of a version's file of arrays; it is part of that file name too."""

MAX_REQUEST_BYTES = 32 << 20
"""The largest image or tensor of a request; ZeroMQ drops a connection with a longer frame."""


class Ask(NamedTuple):
    """A client requests a prediction; the first payload is an encoded image or all input tensors.

    A second payload states which model the client knows (see ``known`` of the pool): the request is
    refused if its input is for another model, and the answer brings the classes up to date.
    ``request_id`` is the client's own. ``version`` "" selects the newest; ``timeout_s`` 0 selects
    the gateway's default. Tensors are as ``dist_net.nets.tensor_specs.to_bytes`` writes them.
    """

    request_id: int
    model: str
    version: str
    is_image: bool
    timeout_s: float
    payloads: Payloads


class Answer(NamedTuple):
    """The result of an ``Ask``; ``status`` is a ``dist_net.serving.pool.requests.Status``.

    With status OK the first payload contains all output tensors. If the client knows another
    version, the second contains the labels as a JSON array, and the third, if the model has one,
    the probability below which it does not know the class. Otherwise there are no payloads,
    ``reason`` states the cause, and ``retry_after_s`` when to retry (0: not specified).
    """

    request_id: int
    status: int
    version: str
    reason: Reason
    retry_after_s: float
    queue_s: float
    compute_s: float
    payloads: Payloads


class Cancel(NamedTuple):
    """The client no longer needs the answer."""

    request_id: int


class Describe(NamedTuple):
    """A client requests the names of the models, and the description of one ("": of none)."""

    request_id: int
    model: str = ""


class Description(NamedTuple):
    """The first payload is a JSON array of the names of the models.

    If the model of the request is served, its state follows as JSON, and the JSON of each of its
    versions, with the labels, newest first.
    """

    request_id: int
    payloads: Payloads


class Reload(NamedTuple):
    """Read a model from its source again and serve it as the newest version."""

    request_id: int
    model: str


class Unload(NamedTuple):
    """Stop serving a model until it is reloaded."""

    request_id: int
    model: str


class Reloaded(NamedTuple):
    """The result of a ``Reload`` or ``Unload``; ``reason`` is empty unless it failed."""

    request_id: int
    version: str
    reason: Reason


class Ping(NamedTuple):
    """A client requests the state of the gateway, to learn whether its requests are still open."""


class Pong(NamedTuple):
    """``gateway`` is a digest of the gateway's name and the connection's; if it changes, all
    requests are lost.
    """

    gateway: str
    is_ready: bool


class JoinPool(NamedTuple):
    """An inference worker of the gateway's ``release``; ``process_id`` matters on its host."""

    name: Name
    host: HostName
    process_id: int
    release: str = ""


class PoolWelcome(NamedTuple):
    """The gateway admits the worker."""

    worker_id: int
    heartbeat_interval_s: float
    heartbeat_timeout_s: float


class ModelPrepared(NamedTuple):
    """A version of a model can be loaded, or ``reason`` states why it cannot. Only in files.

    ``description`` is the JSON of a ``ModelDescription`` of the pool. ``requested`` is the version
    that the gateway requested, or 0 for a version that was found in a training run, where
    ``version`` is the parameter server's. ``is_bad_input``: the model's files or options
    are wrong. The payloads are images to try the model with: the class of each, in UTF-8, followed
    by its PNG file.
    """

    model: str
    version: int
    description: Document
    reason: Reason
    requested: int = 0
    is_bad_input: bool = False
    payloads: Payloads = ()


class Load(NamedTuple):
    """The worker must also load this version, and continue to serve meanwhile.

    ``description`` is the JSON of a ``ModelDescription``, with a MODEL_NAME and an ARRAYS_KEY.
    """

    model: str
    version: int
    description: Document


class Loaded(NamedTuple):
    """The worker can serve the version, or ``reason`` states why it cannot."""

    model: str
    version: int
    reason: Reason


class Drop(NamedTuple):
    """The worker receives no more requests for this version."""

    model: str
    version: int


class FetchArrays(NamedTuple):
    """A worker on another host requests a piece of a version's file of arrays."""

    model: str
    version: int
    offset: int
    size: int


class ArraysPiece(NamedTuple):
    """A piece of the file of ``total`` bytes; no payload if the version does not exist."""

    model: str
    version: int
    offset: int
    total: int
    payloads: Payloads


class RunBatch(NamedTuple):
    """A batch to compute: one payload for each request, all images or the tensors of each."""

    batch_id: int
    model: str
    version: int
    is_image: bool
    payloads: Payloads


class BatchDone(NamedTuple):
    """The results of a batch, in order; ``statuses`` has one byte, a ``Status``, for each request.

    The payload of each is its output tensors, or the reason of its failure, in UTF-8.
    """

    batch_id: int
    statuses: Annotated[bytes, Limits(max_length=MAX_PAYLOADS)]
    prepare_s: float
    compute_s: float
    payloads: Payloads


ClientMessage = Ask | Cancel | Describe | Ping
OperatorMessage = Reload | Unload
PoolWorkerMessage = JoinPool | Loaded | FetchArrays | BatchDone
PoolReply = Answer | Description | Reloaded | Pong | PoolWelcome | ArraysPiece
GatewayMessage = Load | Drop | RunBatch
ServingMessage = (
    ClientMessage | OperatorMessage | PoolWorkerMessage | PoolReply | GatewayMessage | ModelPrepared
)
