"""Every message of the inference pool, one named tuple each; pure data, no I/O.

Fields are plain values; ``payloads``, always the last one, are frames of raw bytes behind the
header, as many as there are. Clients and workers speak to different sockets of the gateway, so
that a client cannot pass itself off as a worker.

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
    Heartbeat       ──────────────▶   Alive | Refuse
                    ◀──────────────   Retire
    Leave           ──────────────▶   (none: the worker is gone)

    model loader                      gateway
    EnlistLoader    ──────────────▶   Enlisted
                    ◀──────────────   PrepareModel
    ModelPrepared   ──────────────▶

Times travel as seconds that are left, never as moments: hosts' clocks differ.
"""

from typing import NamedTuple

Payloads = tuple[bytes | memoryview, ...]
"""Frames of raw bytes. Those that came are borrowed from the socket, and read-only."""


class Ask(NamedTuple):
    """A client asks a model; the first payload is an encoded picture, or a tensor's bytes.

    A second one says what the client knows of the model: see `known` of the pool. Then the
    request is refused if its input is made for another one, and the answer brings other labels.
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

    If that is OK, the first payload holds the outputs, (rows, classes) little-endian float32; a
    second one the labels of the version that answered, as a JSON array, if the client knows others.
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
    """The client does not want the answer any more."""

    request_id: int


class Describe(NamedTuple):
    """A client asks what models there are."""

    request_id: int


class Description(NamedTuple):
    """``models`` is a JSON array, an object for each: name, versions, input, classes, labels."""

    request_id: int
    models: str


class Reload(NamedTuple):
    """Read a model again from where it was read, and serve that as its newest version."""

    request_id: int
    model: str


class Unload(NamedTuple):
    """Serve a model no longer, until it is reloaded."""

    request_id: int
    model: str


class Reloaded(NamedTuple):
    """How a `Reload` or `Unload` ended: an empty ``reason``, or why it could not be done."""

    request_id: int
    version: str
    reason: str


class Greet(NamedTuple):
    """A client asks whether the gateway is there, and still the same."""


class Greeting(NamedTuple):
    """``gateway`` is another one after a restart: what it was asked before, it does not know."""

    gateway: str
    is_ready: bool


class Enlist(NamedTuple):
    """An inference worker offers itself. ``process_id`` is of use on the gateway's host alone."""

    name: str
    host: str
    process_id: int


class EnlistLoader(NamedTuple):
    """The model loader is there; ``token`` is what the gateway gave it when it started it."""

    process_id: int
    token: bytes


class Enlisted(NamedTuple):
    """The worker, or the loader, is in."""

    worker_id: int
    heartbeat_interval_s: float
    heartbeat_timeout_s: float


class PrepareModel(NamedTuple):
    """The loader shall read a model from its source, and leave its arrays where they are mapped."""

    model: str
    version: int


class ModelPrepared(NamedTuple):
    """A version of a model is ready to be loaded; or ``reason`` says why it is not.

    ``description`` is the JSON of a `ModelDescription` of the pool. Also comes
    unasked, when the loader follows a training run: then ``version`` is the parameter server's.
    ``asked``: the version of the `PrepareModel` that it answers; 0 if none.
    """

    model: str
    version: int
    description: str
    reason: str
    asked: int = 0


class Load(NamedTuple):
    """The worker shall be able to answer for this version too; it goes on serving meanwhile."""

    model: str
    version: int
    description: str


class Loaded(NamedTuple):
    """The worker can answer for the version; or ``reason`` says why not."""

    model: str
    version: int
    reason: str


class Drop(NamedTuple):
    """The worker will not be asked for this version any more."""

    model: str
    version: int


class FetchArrays(NamedTuple):
    """A worker of another host asks for a piece of a version's file of arrays."""

    model: str
    version: int
    offset: int
    size: int


class ArraysPiece(NamedTuple):
    """A piece of the file, which has ``total`` bytes; no payload: there is no such version."""

    model: str
    version: int
    offset: int
    total: int
    payloads: Payloads


class RunBatch(NamedTuple):
    """A batch: one payload for each request, pictures all or tensors all.

    ``is_alone``: the pool has nothing else to do, so that whoever asked is likely to wait for the
    answer and then to ask again.
    """

    batch_id: int
    model: str
    version: int
    is_picture: bool
    is_alone: bool
    payloads: Payloads


class BatchDone(NamedTuple):
    """A batch's outcomes, in order. ``statuses`` has one byte for each request, a `Status`.

    Its payload is the outputs, (rows, classes) little-endian float32, or the reason in UTF-8.
    """

    batch_id: int
    statuses: bytes
    prepare_s: float
    compute_s: float
    payloads: Payloads


class Retire(NamedTuple):
    """The worker shall finish what it has, and leave."""


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
