"""The pool's settings, requests and results, and its commands to the gateway."""

import math
from dataclasses import dataclass
from enum import IntEnum
from hashlib import blake2b
from typing import NamedTuple

from dist_net.errors import SettingError
from dist_net.wire.messages import Message

MAX_TIMEOUT_S = 60.0
"""The maximum timeout of a request, unless the default is longer."""

Payload = bytes | memoryview


@dataclass(frozen=True)
class PoolSettings:
    """Validated at creation. Raise ``SettingError`` for a value out of range.

    A batch has at most ``max_batch_size`` rows. At most ``queue_requests`` requests of each client
    to each model are queued. ``default_timeout_s`` applies to requests without a timeout. A worker
    counts as lost if it is silent for ``heartbeat_timeout_s``, or takes longer than ``max_batch_s``
    for a batch or ``max_load_s`` to load a version.
    """

    max_batch_size: int = 8
    queue_requests: int = 1024
    default_timeout_s: float = 10.0
    heartbeat_interval_s: float = 0.2
    heartbeat_timeout_s: float = 1.5
    max_batch_s: float = 60.0
    max_load_s: float = 300.0

    def allowed_s(self, timeout_s: float | None) -> float:
        return min(timeout_s or self.default_timeout_s, max(self.default_timeout_s, MAX_TIMEOUT_S))

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(getattr(PoolSettings, name), int):  # its default
                if not isinstance(value, int) or value < 1:
                    raise SettingError(f"{name} is {value!r}: expected a whole number, at least 1")
            elif not 0 < value < math.inf:
                raise SettingError(f"{name} is {value!r}: expected seconds, above 0")
        if self.heartbeat_timeout_s < 2 * self.heartbeat_interval_s:
            raise SettingError(
                f"heartbeat_timeout_s is {self.heartbeat_timeout_s:g}: expected at least twice the "
                f"heartbeat_interval_s of {self.heartbeat_interval_s:g}, or healthy workers would "
                f"be given up"
            )


class Status(IntEnum):
    OK = 0
    BAD_INPUT = 1  # the input does not fit the model: HTTP 400
    NOT_FOUND = 2  # no such model or version: 404
    UNAVAILABLE = 3  # retry later: queue full, draining, no worker or version broken: 503
    EXPIRED = 4  # admitted, but not answered in time: 504
    FAILED = 5  # it crashed its workers, or its computation raised an exception: 500
    CANCELLED = 6  # the client has gone


@dataclass(slots=True)
class InferenceRequest:
    """A request of ``rows`` inputs for one model, which the caller has found to fit the model.

    ``payload`` contains a tensor, (rows, *input_shape), little-endian, of the model's input type;
    or one encoded image. ``version`` None selects the newest, ``timeout_s`` None the default.
    ``client`` identifies the sender: requests with the same value share one queue and one turn.
    ``is_private``: the sender forbids to keep it. ``repeat_id``: the sender's name for it, or "";
    during a rollout, requests of the same name are answered by the same version.

    The pool sets the other fields when it admits the request. Times are on its clock. ``counted``:
    until it runs, the statistics of this version count it. ``size``: see ``size_of``.
    ``runs_alone``: a worker died of it, or of another one in its batch. ``lent``: a remote worker
    has computed it, or had it in vain. ``is_drawn``: a rollout has drawn it for a new version; if
    that failed, ``version`` is None again.
    """

    model: str
    payload: Payload
    rows: int = 1
    is_image: bool = False
    version: int | None = None
    timeout_s: float | None = None
    client: str = ""
    is_private: bool = False
    repeat_id: str = ""
    request_id: int = 0
    admitted_s: float = 0.0
    deadline_s: float = 0.0
    counted: int = 0
    size: int = 0
    runs_alone: bool = False
    lent: bool = False
    is_drawn: bool = False
    _digest: bytes = b""

    @property
    def digest(self) -> bytes:
        """Of the payload; it is computed once."""
        if not self._digest:
            self._digest = blake2b(self.payload, digest_size=16).digest()
        return self._digest

    @property
    def kind(self) -> tuple[int | None, bool]:
        """The properties that all requests of a batch share, besides the model."""
        return self.version, self.is_image


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a request. ``payload``: (rows, classes) little-endian float32, empty unless OK.

    ``labels``: the class names of the version that answered; ``unknown_below``: see
    ``ModelDescription``. ``reason``: the cause of another status than OK. ``retry_after_s``: the
    pause before a retry; 0: at once, or never. ``queue_s``: from admission to dispatch.
    ``prepare_s``, ``compute_s``: the time to decode and to compute its batch of ``batch_rows``.
    """

    status: Status
    version: int = 0
    payload: Payload = b""
    reason: str = ""
    retry_after_s: float = 0.0
    queue_s: float = 0.0
    prepare_s: float = 0.0
    compute_s: float = 0.0
    batch_rows: int = 0
    labels: tuple[str, ...] = ()
    unknown_below: float = 0.0


class SendToNode(NamedTuple):
    node: bytes
    message: Message


class EndRequest(NamedTuple):
    """Send the result to the caller. Each request ends once, unless it was cancelled."""

    request_id: int
    result: Result


class EvictWorker(NamedTuple):
    """Kill this lost worker, the child with this credential, and start another."""

    child: str
    reason: str


class ReadModel(NamedTuple):
    """Read a model from its source in place of an earlier request; report a ModelPrepared."""

    model: str
    version: int


class RemoveArrays(NamedTuple):
    """Remove the file of a version that no worker will load any more."""

    model: str
    version: int


PoolCommand = SendToNode | EndRequest | EvictWorker | ReadModel | RemoveArrays
