"""What the pool's state machines tell the gateway to do."""

from typing import NamedTuple

from dist_net.serving.pool.requests import Outcome
from dist_net.wire.serving_messages import ServingMessage


class SendToNode(NamedTuple):
    """Send the message to the worker's node."""

    node: bytes
    message: ServingMessage


class EndRequest(NamedTuple):
    """The request has ended: tell whoever asked. Once for each that was admitted and not
    cancelled."""

    request_id: int
    outcome: Outcome


class EvictWorker(NamedTuple):
    """The pool has given the worker up: kill it if it is a child, and start another one."""

    node: bytes
    process_id: int
    host: str
    reason: str


PoolCommand = SendToNode | EndRequest | EvictWorker
