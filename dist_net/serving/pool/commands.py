"""What the pool's state machines tell the gateway to do."""

from typing import NamedTuple

from dist_net.serving.pool.requests import Outcome
from dist_net.wire.serving_messages import ServingMessage


class Send(NamedTuple):
    """Send the message to the worker's node."""

    node: bytes
    message: ServingMessage


class Finish(NamedTuple):
    """The request has ended: tell whoever asked. Once for each that was admitted and not
    cancelled."""

    request_id: int
    outcome: Outcome


class Evict(NamedTuple):
    """The pool has given the worker up: kill it if it is a child, and start another one."""

    node: bytes
    process_id: int
    host: str
    reason: str


Command = Send | Finish | Evict
