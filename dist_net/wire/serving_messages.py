"""Every message of the inference pool, one named tuple each; pure data.

Fields are plain values; ``payloads``, always the last field, are any number of frames of raw bytes
after the header. Clients and workers have different sockets of the gateway, so that a client cannot
pass for a worker.

    client                            gateway
    Ask             ──────────────▶   Answer, later
    Cancel          ──────────────▶   (none)
    Describe        ──────────────▶   Description
    Reload, Unload  ──────────────▶   Reloaded, later
    Greet           ──────────────▶   Greeting

    inference worker                  gateway
    Enlist          ──────────────▶   Enlisted | Refuse
                    ◀──────────────   Load, Drop
    Loaded          ──────────────▶
    FetchArrays     ──────────────▶   ArraysPiece
                    ◀──────────────   RunBatch
    BatchDone       ──────────────▶
    Heartbeat       ──────────────▶   Alive, by both connections | Refuse
                    ◀──────────────   Retire
    Leave           ──────────────▶   (none: the worker is gone)

    model loader                      gateway
    EnlistLoader    ──────────────▶   Enlisted
                    ◀──────────────   PrepareModel
    ModelPrepared   ──────────────▶

Times are seconds from now, never moments: the clocks of hosts differ.
"""

import re
from typing import NamedTuple

MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""A served model's name: it becomes a part of URLs, and of a file's name on a worker's host."""

ARRAYS_KEY = re.compile("[0-9a-f]{64}")
"""The key of a version's file of arrays, a SHA-256, which becomes a part of that name too."""

MAX_REQUEST_BYTES = 32 << 20
"""The largest image or tensor of a request; ZeroMQ drops a connection with a longer frame."""

Payloads = tuple[bytes | memoryview, ...]
"""Frames of raw bytes. Received ones are borrowed from the socket, and read-only."""


class Ask(NamedTuple):
    """A client asks a model; the first payload is an encoded picture, or a tensor's bytes.

    A second one says what the client knows of the model: see `known` of the pool. Then the
    request is refused if its input is made for another one, and the answer brings what else the
    client must know of the classes.
    ``request_id`` is the client's own. ``version`` "" is the newest; ``timeout_s`` 0 is what the
    gateway allows by default. A tensor is little-endian, row-major, of the model's input type.
    """

    request_id: int
    model: str
    version: str
    is_picture: bool
    timeout_s: float
    payloads: Payloads


class Answer(NamedTuple):
    """The outcome of an `Ask`: ``status`` is a `dist_net.serving.pool.requests.Status`.

    If that is OK, the first payload holds the outputs, (rows, classes) little-endian float32. If
    the client knows another version, a second one holds the labels of the one that answered, as a
    JSON array, and a third one, if it has that, the probability below which it does not know.
    Else there is none, ``reason`` says why, and ``retry_after_s``, if not 0, when to ask again.
    """

    request_id: int
    status: int
    version: str
    reason: str
    retry_after_s: float
    queue_s: float
    compute_s: float
    payloads: Payloads


class Cancel(NamedTuple):
    """The client no longer wants the answer."""

    request_id: int


class Describe(NamedTuple):
    """A client asks which models there are."""

    request_id: int


class Description(NamedTuple):
    """``models`` is a JSON array, an object for each: name, versions, input, classes,
    labels, threshold."""

    request_id: int
    models: str


class Reload(NamedTuple):
    """Read a model again from its source, and serve that as its newest version."""

    request_id: int
    model: str


class Unload(NamedTuple):
    """Stop serving a model until it is reloaded."""

    request_id: int
    model: str


class Reloaded(NamedTuple):
    """How a `Reload` or `Unload` ended: an empty ``reason``, or why it could not be done."""

    request_id: int
    version: str
    reason: str


class Greet(NamedTuple):
    """A client asks whether the gateway is there, the same one by the same connection."""


class Greeting(NamedTuple):
    """``gateway`` names it and the client's connection: with another name all requests are lost."""

    gateway: str
    is_ready: bool


class Enlist(NamedTuple):
    """An inference worker joins. ``process_id`` matters only on the gateway's host.

    ``release`` must be the gateway's: see `dist_net.release`.
    """

    name: str
    host: str
    process_id: int
    release: str = ""


class EnlistLoader(NamedTuple):
    """The model loader joins; ``token`` is the one that the gateway started it with."""

    process_id: int
    token: bytes


class Enlisted(NamedTuple):
    """The worker, or the loader, is in."""

    worker_id: int
    heartbeat_interval_s: float
    heartbeat_timeout_s: float


class PrepareModel(NamedTuple):
    """The loader must read a model from its source, and write its arrays to a file to be mapped."""

    model: str
    version: int


class ModelPrepared(NamedTuple):
    """A version of a model can be loaded; or ``reason`` says why not.

    ``description`` is the JSON of a `ModelDescription` of the pool. It also comes unasked, from a
    training run that the loader follows; then ``version`` is the parameter server's.
    ``requested``: the version of the `PrepareModel` that it answers; 0: none. ``is_bad_input``: the
    reason is that the model's files, or what names them, cannot be right. The payloads are pictures
    to try the model with: the class of each, in UTF-8, and then its PNG file.
    """

    model: str
    version: int
    description: str
    reason: str
    requested: int = 0
    is_bad_input: bool = False
    payloads: Payloads = ()


class Load(NamedTuple):
    """The worker must load this version too; it continues to serve meanwhile.

    ``description`` is the JSON of a `ModelDescription`, with a MODEL_NAME and an ARRAYS_KEY.
    """

    model: str
    version: int
    description: str


class Loaded(NamedTuple):
    """The worker can answer for the version; or ``reason`` says why not."""

    model: str
    version: int
    reason: str


class Drop(NamedTuple):
    """The worker is not asked for this version any more."""

    model: str
    version: int


class FetchArrays(NamedTuple):
    """A worker of another host asks for a piece of a version's file of arrays."""

    model: str
    version: int
    offset: int
    size: int


class ArraysPiece(NamedTuple):
    """A piece of the file, which has ``total`` bytes; no payload if there is no such version."""

    model: str
    version: int
    offset: int
    total: int
    payloads: Payloads


class RunBatch(NamedTuple):
    """A batch to compute: one payload for each request, all pictures or all tensors."""

    batch_id: int
    model: str
    version: int
    is_picture: bool
    payloads: Payloads


class BatchDone(NamedTuple):
    """The outcomes of a batch, in order. ``statuses``: a byte for each request, a `Status`.

    The payload of each: its outputs, (rows, classes) little-endian float32, or why not, in UTF-8.
    """

    batch_id: int
    statuses: bytes
    prepare_s: float
    compute_s: float
    payloads: Payloads


class Retire(NamedTuple):
    """The worker must finish what it has, and leave."""


ServingMessage = (
    Ask
    | Answer
    | Cancel
    | Describe
    | Description
    | Reload
    | Unload
    | Reloaded
    | Greet
    | Greeting
    | Enlist
    | EnlistLoader
    | Enlisted
    | PrepareModel
    | ModelPrepared
    | Load
    | Loaded
    | Drop
    | FetchArrays
    | ArraysPiece
    | RunBatch
    | BatchDone
    | Retire
)
