"""What the pool is asked, and how each request ends; pure data, shared by all of serving."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

Payload = bytes | memoryview


class Status(IntEnum):
    """How a request ended. A byte in messages."""

    OK = 0
    BAD_INPUT = 1  # what was asked cannot be answered: HTTP 400
    NOT_FOUND = 2  # no such model, or version of it: 404
    UNAVAILABLE = 3  # not now: full, too late before it began, draining, no worker: 503
    EXPIRED = 4  # admitted, but its time ran out: 504
    FAILED = 5  # it ended the workers that tried it: 500
    CANCELLED = 6  # its client has gone: nobody reads this


@dataclass(frozen=True, slots=True)
class Question:
    """One request as it came in: ``rows`` inputs of one model.

    ``payload``: a tensor's bytes, (rows, *input_shape) little-endian of the model's input type, or
    one encoded picture. ``version`` None: the newest. ``timeout_s`` None: the pool's default.
    """

    model: str
    payload: Payload
    rows: int = 1
    is_picture: bool = False
    version: int | None = None
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it ended. ``payload``: (rows, classes) little-endian float32 if OK, else empty.

    ``labels``: the names of its classes, as the version that answered has them; empty for none.
    ``reason``: why it is not OK. ``retry_after_s``: when asking again may help; 0: never, or at
    once. ``queue_s``: from admission to the dispatch that was answered; ``prepare_s`` and
    ``compute_s``: what its batch of ``batch_rows`` took for its inputs and for the network.
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
