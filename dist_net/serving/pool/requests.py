"""What the pool is asked, how a request ends, and what the pool tells the gateway to do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from dist_net.wire.messages import Message

Payload = bytes | memoryview


class Status(IntEnum):
    """How a request ended; one byte in messages."""

    OK = 0
    BAD_INPUT = 1  # the input does not fit the model: HTTP 400
    NOT_FOUND = 2  # no such model or version: 404
    UNAVAILABLE = 3  # not now: queue full, no time, draining or no worker: 503
    EXPIRED = 4  # admitted, but its time ran out: 504
    FAILED = 5  # it crashed the workers that tried it: 500
    CANCELLED = 6  # the client has gone; nobody reads this


@dataclass(frozen=True, slots=True)
class InferenceRequest:
    """A request as it comes in: ``rows`` inputs for one model.

    ``payload``: the bytes of a tensor, (rows, *input_shape), little-endian, of the model's input
    type; or one encoded image. ``version`` None: the newest. ``timeout_s`` None: the default.
    """

    model: str
    payload: Payload
    rows: int = 1
    is_image: bool = False
    version: int | None = None
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """How a request ended. ``payload``: (rows, classes) little-endian float32 if OK, else empty.

    ``labels``: the class names of the version that answered, if it has any; ``unknown_below``: see
    `ModelDescription`. ``reason``: why it is not OK. ``retry_after_s``: when to try again; 0: at
    once, or never. ``queue_s``: from admission to dispatch. ``prepare_s``, ``compute_s``: what its
    batch of ``batch_rows`` rows took to decode and to compute.
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
    """Send the message to the worker or loader at ``node``."""

    node: bytes
    message: Message


class EndRequest(NamedTuple):
    """Give the result to whoever asked. Each request ends once, unless it was cancelled."""

    request_id: int
    result: Result


class EvictWorker(NamedTuple):
    """The pool has given up on this worker: kill it if it is a child, and start another."""

    node: bytes
    process_id: int
    host: str
    reason: str


PoolCommand = SendToNode | EndRequest | EvictWorker
