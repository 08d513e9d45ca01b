"""Every message of a training cluster, one named tuple each; pure data, no I/O.

Those of the inference pool are in `dist_net.wire.serving_messages`; `Message` is any of both.

A message's fields are plain values (int, float, str, bool, bytes, a few integers) and at most one
array, or several of one length, each of which travels as a raw frame of its own behind the header.
``None`` or nothing in their place means that they are where both ends already see them: in shared
memory.

Three roles speak: a *worker* trains, the *server* holds the weights, an *observer* watches a run
and may end it. Every request has exactly one reply:

    worker                            server
    Join            ──────────────▶   Welcome | Refuse
    Pull            ──────────────▶   Work | Wait | Stop | Refuse
    Push            ──────────────▶   Work | Wait | Stop | Refuse
    Heartbeat       ──────────────▶   Alive | Refuse
    Leave           ──────────────▶   (none: the worker is gone)

    observer
    StatusRequest   ──────────────▶   StatusReport
    SnapshotRequest ──────────────▶   Snapshot
    Shutdown        ──────────────▶   StatusReport

    a host that was given a token
    Enrol           ──────────────▶   Enrolled | Refuse
    RecipeRequest   ──────────────▶   RecipeOffer | Refuse

A worker numbers its `Join`, `Pull` and `Push` requests: each `request_id` is one more than the
last. The reply repeats the number, and answers all requests up to it. The server takes in each
request once, in this order only, and reports in `Alive` how far it is. So a worker notices at its
next heartbeat that a request or its reply was lost with a connection, and repeats the request.
"""

from typing import NamedTuple

from dist_net.vector import Vector, Vectors
from dist_net.wire.serving_messages import Payloads, ServingMessage

Integers = tuple[int, ...]


class Pipeline(NamedTuple):
    """How far a worker may run ahead of the server, which decides it.

    ``grouped``: the most gradients in one push; 1: each goes by itself. ``depth``: how many such
    pushes may be unanswered; 1: after each the worker waits for newer weights.
    """

    depth: int = 2
    grouped: int = 3

    @property
    def gradients(self) -> int:
        """The most gradients that a worker may have computed, and the server not applied."""
        return self.depth * self.grouped

    @property
    def snapshots(self) -> int:
        """The most snapshots of the weights that one worker may need at a time.

        While it computes from one, newer ones may be on their way to it, one for each unanswered
        push.
        """
        return 1 + self.gradients


PIPELINE = Pipeline()
"""Unless a run says otherwise. Workers have room for so many gradients, and no more."""


class SegmentAddress(NamedTuple):
    """How another process of this host finds a shared-memory segment; descriptor -1: there is none.

    ``token`` lies in the segment, which shows that it is the one that was announced.
    """

    process_id: int
    descriptor: int
    token: bytes


NO_SEGMENT = SegmentAddress(process_id=0, descriptor=-1, token=b"")


class Equipment(NamedTuple):
    """What a worker computes with, by its own account; 0 or "" for what it does not know.

    ``host`` has ``host_cores``, of which the worker may use ``cores``, for ``core_quota`` cores'
    time where its cgroups limit that (0: they do not), in so many ``threads``. ``blas`` is the
    library that multiplies matrices, with its version.
    """

    host: str = ""
    host_cores: int = 0
    cores: int = 0
    core_quota: float = 0.0
    threads: int = 0
    blas: str = ""


UNKNOWN_EQUIPMENT = Equipment()


class Join(NamedTuple):
    """A worker asks to take part.

    ``identity`` is a random number, the same each time that this worker joins: the server ends the
    membership that it had, of which requests may still be on their way. It is a secret between the
    two, and proves that later messages are this worker's, whichever connection they come by.
    ``recipe_digest`` must equal the server's. Then comes the `SegmentAddress` of its gradient
    vectors; without a segment, arrays travel as frames. The rest is its `Equipment`.
    """

    name: str
    identity: int
    recipe_digest: str
    vector_size: int
    process_id: int
    gradient_descriptor: int
    segment_token: bytes
    request_id: int = 0
    host: str = ""
    host_cores: int = 0
    cores: int = 0
    core_quota: float = 0.0
    threads: int = 0
    blas: str = ""

    @property
    def equipment(self) -> Equipment:
        return Equipment._make(self[-len(Equipment._fields) :])


class Welcome(NamedTuple):
    """The worker is in.

    ``incarnation`` names the start of the server. No other start gives this ``worker_id``, so that
    alone says of which of them a request is: any other one refuses it. Then comes the
    `SegmentAddress` of the weights; without one, they travel as frames.
    """

    worker_id: int
    incarnation: str
    batch_size: int
    seed: int
    heartbeat_interval_s: float
    heartbeat_timeout_s: float
    process_id: int
    weights_descriptor: int
    segment_token: bytes
    request_id: int = 0


class Refuse(NamedTuple):
    """The server will not have this worker, or answer, and why.

    ``may_rejoin``: as a new worker it would; an observer may ask again in a moment.
    """

    reason: str
    may_rejoin: bool


class Pull(NamedTuple):
    """A worker without work asks for some."""

    worker_id: int
    identity: int
    request_id: int


class Work(NamedTuple):
    """A lease, and the weights to begin with; also the acknowledgement of a push.

    The worker computes the minibatches of samples ``start`` to ``stop`` of the shuffled order of
    ``epoch``. It pushes ``together`` gradients at a time if that makes none of them wait for long,
    and may have ``depth`` such pushes unanswered. ``snapshot`` is the index of the weights' buffer
    in the server's segment; it stays as it is until this worker pushes what it computed from a
    later one, or was given as many as a `Pipeline` says. A worker that does not share memory finds
    a copy in ``weights``, and -1 here.
    """

    request_id: int
    lease_id: int
    epoch: int
    start: int
    stop: int
    version: int
    depth: int
    together: int
    snapshot: int
    weights: Vector | None


class Wait(NamedTuple):
    """There is nothing to compute now: pull again after so many seconds."""

    request_id: int
    retry_after_s: float


class Push(NamedTuple):
    """The mean gradients of minibatches that follow each other, mostly of one; applied in turn.

    The first minibatch begins at sample ``start``, and each ends at its one of ``stops``, where the
    next begins. Each gradient was computed from its one of ``base_versions``. ``loss_sum`` and
    ``correct`` are sums over all the samples, before any update. ``slots`` are where the gradients
    lie: in the worker's segment, or, when ``gradients`` holds them, in memory of its own; they stay
    there as they are until the push is answered.
    """

    worker_id: int
    identity: int
    request_id: int
    lease_id: int
    start: int
    stops: Integers
    base_versions: Integers
    loss_sum: float
    correct: int
    slots: Integers
    gradients: Vectors

    @property
    def stop(self) -> int:
        return self.stops[-1]


class Heartbeat(NamedTuple):
    """The worker's process is alive, whatever its computation is doing.

    ``sent_s`` is the time on the worker's clock, which comes back with the answer;
    ``round_trip_s`` is how long the last answer took, 0 before there was one. ``identity`` is what
    the worker joined with; inference workers have none.
    """

    worker_id: int
    sent_s: float = 0.0
    round_trip_s: float = 0.0
    identity: int = 0


class Alive(NamedTuple):
    """The server is alive too, and still counts this worker in; ``sent_s`` is the heartbeat's.

    ``received_id`` and ``answered_id`` are the numbers of the last of the worker's requests that
    the server has taken in and answered.
    """

    sent_s: float = 0.0
    received_id: int = 0
    answered_id: int = 0


class Leave(NamedTuple):
    """The worker goes away on purpose; its leases may be handed on at once."""

    worker_id: int
    identity: int = 0


class Stop(NamedTuple):
    """There is no more work: ``finished``, every epoch is done; else the run was ended early."""

    reason: str
    finished: bool


class StatusRequest(NamedTuple):
    """An observer asks for the run's state and the metric records from ``first_record`` on."""

    first_record: int


class StatusReport(NamedTuple):
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


class Enrol(NamedTuple):
    """Who connects with a token's key asks that a key of their own (Z85) be let in, for a role.

    ``name`` is the host's, for people.
    """

    name: str
    role: str
    public_key: str


class Enrolled(NamedTuple):
    """That key may connect from now on, also when the token has expired."""


class RecipeRequest(NamedTuple):
    """A host asks what is trained."""


class RecipeOffer(NamedTuple):
    """What is trained, by the ``reference`` of a recipe that is built in, or else by its files.

    The payloads are the name of each file, in UTF-8, and then its content. ``recipe_digest`` is
    what the server asks of a worker's `Join`. ``class_names`` is a JSON array.
    """

    name: str
    reference: str
    recipe_digest: str
    class_names: str
    payloads: Payloads


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
    | StatusReport
    | SnapshotRequest
    | Snapshot
    | Shutdown
    | Enrol
    | Enrolled
    | RecipeRequest
    | RecipeOffer
    | ServingMessage
)
