"""The messages of the inference pool, one named tuple each; pure data.

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


class JoinPool(NamedTuple):
    """An inference worker of the gateway's ``release``; the first three are labels for people.

    ``credential``: the secret that the gateway passed to the process, if it started it.
    """

    name: Name
    host: HostName
    process_id: int
    release: str = ""
    credential: str = ""


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


PoolWorkerMessage = JoinPool | Loaded | FetchArrays | BatchDone
PoolReply = PoolWelcome | ArraysPiece
GatewayMessage = Load | Drop | RunBatch
ServingMessage = PoolWorkerMessage | PoolReply | GatewayMessage | ModelPrepared
