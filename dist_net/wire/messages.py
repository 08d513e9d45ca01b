"""Every message of a training cluster, one named tuple each; pure data, no I/O.

Those of the inference pool are in `dist_net.wire.serving_messages`; `Message` is any of both.

A message's fields are plain values (int, float, str, bool, bytes) and at most one array, which
travels as a raw frame of its own behind the header. ``None`` in an array's place means that the
array is where both ends already see it: in shared memory.

Three roles speak: a *worker* trains, the *server* holds the weights, an *observer* watches a run
and may end it. Every request has exactly one reply:

    worker                            server
    Join            ──────────────▶   Welcome | Refuse
    Pull            ──────────────▶   Work | Wait | Stop | Refuse
    Push            ──────────────▶   Work | Wait | Stop | Refuse
    Heartbeat       ──────────────▶   Alive | Refuse
    Leave           ──────────────▶   (none: the worker is gone)

    observer
    StatusRequest   ──────────────▶   Status
    SnapshotRequest ──────────────▶   Snapshot
    Shutdown        ──────────────▶   Status
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dist_net.wire.serving_messages import ServingMessage

Vector = NDArray[np.float32]


class Join(NamedTuple):
    """A worker asks to take part.

    ``recipe_digest`` must equal the server's. ``process_id`` and ``gradient_descriptor`` name the
    worker's shared-memory segment, which holds its gradient vectors; descriptor -1: no shared
    memory, arrays travel as frames.
    """

    name: str
    recipe_digest: str
    vector_size: int
    process_id: int
    gradient_descriptor: int
    segment_token: bytes


class Welcome(NamedTuple):
    """The worker is in. Descriptor -1: weights travel as frames; else they are in the segment."""

    worker_id: int
    batch_size: int
    seed: int
    heartbeat_interval_s: float
    heartbeat_timeout_s: float
    process_id: int
    weights_descriptor: int
    segment_token: bytes


class Refuse(NamedTuple):
    """The server will not have this worker, and why. ``may_rejoin``: as a new worker it would."""

    reason: str
    may_rejoin: bool


class Pull(NamedTuple):
    """A worker without work asks for some."""

    worker_id: int


class Work(NamedTuple):
    """A lease, and the weights to begin with; also the acknowledgement of a push.

    The worker computes the minibatches of samples ``start`` to ``stop`` of the shuffled order of
    ``epoch``, one push each. ``snapshot`` is the index of the weights' buffer in the server's
    segment; it stays as it is until this worker pushes what it computed from a later one, or has
    been answered six times more. -1: ``weights`` holds them.
    """

    lease_id: int
    epoch: int
    start: int
    stop: int
    version: int
    snapshot: int
    weights: Vector | None


class Wait(NamedTuple):
    """Every sample that is left is leased to others: pull again after so many seconds."""

    retry_after_s: float


class Push(NamedTuple):
    """The mean gradient over samples ``start`` to ``stop``, computed from ``base_version``.

    ``loss_sum`` and ``correct`` are sums over the samples, before the update. ``slot`` is the
    index of the gradient in the worker's segment; -1 when ``gradient`` holds it.
    """

    worker_id: int
    lease_id: int
    start: int
    stop: int
    base_version: int
    loss_sum: float
    correct: int
    slot: int
    gradient: Vector | None


class Heartbeat(NamedTuple):
    """The worker's process is alive, whatever its computation is doing."""

    worker_id: int


class Alive(NamedTuple):
    """The server is alive too, and still counts this worker in."""


class Leave(NamedTuple):
    """The worker goes away on purpose; its leases may be handed on at once."""

    worker_id: int


class Stop(NamedTuple):
    """There is no more work: ``finished``, every epoch is done; else the run was ended early."""

    reason: str
    finished: bool


class StatusRequest(NamedTuple):
    """An observer asks for the run's state and the metric records from ``first_record`` on."""

    first_record: int


class Status(NamedTuple):
    """The run's state; ``report`` is a UTF-8 JSON object."""

    report: str


class SnapshotRequest(NamedTuple):
    """An observer asks for the weights as they stand."""


class Snapshot(NamedTuple):
    """The weights at ``version``, after ``samples`` applied samples."""

    version: int
    samples: int
    weights: Vector


class Shutdown(NamedTuple):
    """An observer ends the run: write a checkpoint, stop the workers, exit."""

    reason: str


Message = (
    Join
    | Welcome
    | Refuse
    | Pull
    | Work
    | Wait
    | Push
    | Heartbeat
    | Alive
    | Leave
    | Stop
    | StatusRequest
    | Status
    | SnapshotRequest
    | Snapshot
    | Shutdown
    | ServingMessage
)
