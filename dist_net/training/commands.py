"""What a worker's state machine tells its process to do."""

from typing import NamedTuple

from dist_net.vector import Vector
from dist_net.wire.messages import Message, Welcome


class SendToServer(NamedTuple):
    """SendToServer the message to the server."""

    message: Message


class Begin(NamedTuple):
    """The worker is in (again): set up for this welcome, and send heartbeats from now on."""

    welcome: Welcome


class Gather(NamedTuple):
    """Gather samples ``start`` to ``stop`` of the shuffled order of ``epoch``."""

    epoch: int
    start: int
    stop: int


class Compute(NamedTuple):
    """Compute the gradient of these samples, prepared last, then call ``WorkerState.computed``.

    The weights are buffer ``snapshot`` of the server's segment; -1: ``weights`` holds them.
    """

    epoch: int
    start: int
    stop: int
    snapshot: int
    weights: Vector | None
    slot: int


class Ended(NamedTuple):
    """The worker has no more to do: ``finished``, every epoch is done."""

    reason: str
    finished: bool


WorkerCommand = SendToServer | Begin | Gather | Compute | Ended
