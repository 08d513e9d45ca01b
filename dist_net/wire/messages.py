"""The messages of a training cluster, one named tuple each; pure data.

``Message`` also includes the messages of the inference pool, ``dist_net.wire.serving_messages``.

Fields are plain values, records of plain values, and at most one array, which travels as a frame
behind the header. ``None`` means that the array is in shared memory, which both ends can read.

A *worker* trains, the *server* holds the weights, and an *observer* watches a run and may end it.
Every request has exactly one reply:

    worker                            server
    Join            ──────────────▶   Welcome | Refuse
    Pull            ──────────────▶   Work | Stop | Refuse
    Push            ──────────────▶   Work | Stop | Refuse
    Heartbeat       ──────────────▶   Alive | Stop | Refuse
    Leave           ──────────────▶   (none)

    observer
    StatusRequest   ──────────────▶   StatusReport
    SnapshotRequest ──────────────▶   Snapshot
    Shutdown        ──────────────▶   StatusReport
    ForgetMember    ──────────────▶   StatusReport | Refuse

    host with a token
    Enroll          ──────────────▶   Enrolled | Refuse
    RecipeRequest   ──────────────▶   RecipeOffer | Refuse

    standby
    Follow          ──────────────▶   Followed | Stop | Refuse

A worker numbers its ``Join``, ``Pull`` and ``Push`` requests consecutively. A reply repeats the
``request_id`` and answers all requests up to that number. The server processes each request once
and in order, and reports its progress in ``Alive``. A worker therefore notices at its next
heartbeat that a request or reply was lost with a connection, and repeats the request.
"""

from typing import Annotated, Any, NamedTuple, Self

from dist_net.ground.vector import Vector
from dist_net.wire.fields import (
    Count,
    Digest,
    Document,
    HostName,
    Limits,
    Name,
    Payloads,
    Reason,
    StandbyList,
)
from dist_net.wire.lease_steps import LeaseSteps, Parts
from dist_net.wire.serving_messages import ServingMessage


class SegmentAddress(NamedTuple):
    """A shared-memory segment of this host; it begins with ``token``, which its users verify."""

    process_id: int
    descriptor: int
    token: bytes


class Equipment(NamedTuple):
    """The hardware and libraries of a worker, as reported by the worker; 0 or "" if unknown.

    ``host`` has ``host_cores`` cores, ``cores`` of which the worker may use. ``core_quota`` is the
    limit of its cgroups in cores (0: none). ``blas`` is the name and version of the BLAS library;
    ``kernels``: see ``kernel_digest``.
    """

    host: HostName = ""
    host_cores: Count = 0
    cores: Count = 0
    core_quota: Annotated[float, Limits(high=65_536)] = 0.0
    threads: Count = 0
    blas: Name = ""
    kernels: int = 0


UNKNOWN_EQUIPMENT = Equipment()


class Join(NamedTuple):
    """A worker requests to take part in the run.

    ``identity`` is a random secret that the worker keeps: it proves that later messages are from
    this worker, on any connection, and a new ``Join`` ends the worker's former membership.
    ``recipe_digest`` must equal the server's. With ``shares_memory``, the worker can map a segment
    of a server on its host; otherwise arrays travel as frames. ``parts`` is the number of processes
    that take its local steps: the worker stands for all of them, with one exchange for each lease.
    ``public_key`` (Z85) is its key, which the server's socket fills in; "" if it needs none.
    """

    name: Name
    identity: int
    recipe_digest: Digest
    vector_size: int
    shares_memory: bool = False
    request_id: int = 0
    equipment: Equipment = UNKNOWN_EQUIPMENT
    parts: Parts = 1
    public_key: Name = ""


class StepSettings(NamedTuple):
    """The settings of a run's local steps that its recipe does not determine: plain numbers.

    Recipes, options and settings of runs, and starts in a journal have fields of these names, in
    which a ``clip_norm`` or ``average_decay`` of 0 is none. ``optimizer`` is its text.
    """

    seed: int
    batch_size: int
    epochs: int
    optimizer: str
    learning_rate: float
    clip_norm: float = 0.0
    average_decay: float = 0.0

    @classmethod
    def of(cls, owner: Any, **given: Any) -> Self:
        """Return the values of ``owner``'s fields of these names; ``given`` replaces some."""
        return cls._make(
            given[name] if name in given else getattr(owner, name) for name in cls._fields
        )


class Welcome(NamedTuple):
    """The server admits the worker.

    ``term`` names this start of the server. No other start assigns the same ``worker_id``,
    so another server refuses the worker's requests. ``segment`` is shared memory for this worker
    alone, of two training states: the server writes the first, the worker the second. None: frames.
    """

    worker_id: int
    term: int
    steps: StepSettings
    heartbeat_interval_s: float
    heartbeat_timeout_s: float
    segment: SegmentAddress | None = None
    request_id: int = 0


class Refuse(NamedTuple):
    """A refusal. ``may_rejoin``: a worker may join again, an observer repeat its request."""

    reason: Reason
    may_rejoin: bool


class Pull(NamedTuple):
    """A worker without a lease requests work."""

    worker_id: int
    identity: int
    request_id: int


class Work(NamedTuple):
    """A lease and the state to begin from, packed unless in shared memory; acknowledges a push."""

    worker_id: int
    request_id: int
    lease_id: int
    steps: LeaseSteps
    state: Vector | None


class Push(NamedTuple):
    """The training state after the local steps of a lease; as a frame, it is packed.

    ``loss_sum`` and ``correct``: sums over all samples; ``computed_s``: the time of the steps.
    """

    worker_id: int
    identity: int
    request_id: int
    lease_id: int
    loss_sum: Annotated[float, Limits(low=None)]  # a diverging loss is reported, not refused
    correct: int
    computed_s: float
    state: Vector | None


class Heartbeat(NamedTuple):
    """The worker's process is alive, even during a long computation.

    ``sent_s`` is the time on the worker's clock, and ``heard_s`` the time of the newest heartbeat
    with an answer. ``identity`` is in the worker's ``Join``; inference workers have none.
    """

    worker_id: int
    sent_s: float = 0.0
    identity: int = 0
    heard_s: float = 0.0


class Alive(NamedTuple):
    """The server is alive and the worker is a member; ``sent_s`` is copied from the heartbeat.

    ``received_id`` and ``answered_id`` are the worker's last request that the server has processed
    and the last that it has answered. ``standbys``: see ``dist_net.wire.standbys``.
    """

    sent_s: float = 0.0
    received_id: int = 0
    answered_id: int = 0
    standbys: StandbyList = ""


class Leave(NamedTuple):
    """The worker leaves; its leases may be assigned to other workers at once."""

    worker_id: int
    identity: int = 0


class Stop(NamedTuple):
    """The run has ended, and the worker must leave; ``finished`` if every epoch is done."""

    reason: Reason
    finished: bool


class StatusRequest(NamedTuple):
    """An observer requests the run's state and the metric records from ``first_record`` on.

    A pool that follows the run is ``reader``, a random number, and has ``version``; 0: another.
    """

    first_record: int
    reader: int = 0
    version: int = 0


class StatusReport(NamedTuple):
    """The run's state, as a JSON object."""

    report: Document


class SnapshotRequest(NamedTuple):
    """An observer requests the current weights; ``reader``: see ``StatusRequest``."""

    reader: int = 0
    version: int = 0


class Snapshot(NamedTuple):
    """The weights at ``version``, after ``samples`` applied samples."""

    version: int
    samples: int
    weights: Vector


class Shutdown(NamedTuple):
    """An observer ends the run: the server writes a checkpoint, stops the workers and exits."""

    reason: Reason


class ForgetMember(NamedTuple):
    """An operator states that a voter, by its name or public key, has ended for good."""

    name: Name


class Enroll(NamedTuple):
    """The holder of a token requests to admit its public key (Z85) for a role, as ``name``."""

    name: Name
    role: str
    public_key: str


class Enrolled(NamedTuple):
    """The key is admitted, also after the token has expired."""


class RecipeRequest(NamedTuple):
    """A host requests the run's recipe."""


class RecipeOffer(NamedTuple):
    """The run's recipe: the ``reference`` of a built-in recipe, or else the recipe's files.

    The payloads are the name of each file, in UTF-8, followed by its content. A worker's ``Join``
    must have the same ``recipe_digest``. ``class_names`` is JSON; ``options``: for a standby.
    """

    name: Name
    reference: str
    recipe_digest: Digest
    class_names: Document
    options: Document
    payloads: Payloads


class Follow(NamedTuple):
    """A standby requests what it lacks of a run, several times a second.

    ``address`` is where it would be the server, "" if it only copies; ``public_key``: see ``Join``.
    It has ``journal_bytes`` of the journal of ``term``, and the whole state of ``version`` in
    ``copied_term`` (0: none yet), after ``samples`` applied samples. It requests ``part_bytes`` of
    ``state_version`` from ``state_bytes`` on, or from 0 on of the newest version. If ``part_bytes``
    is 0, it requests the journal, and ``state_bytes`` have arrived. ``sent_s`` and ``heard_s``: see
    ``Heartbeat``. It has stored the list of voters with the fingerprint ``voters``. If it
    ``leaves``, the run no longer counts on it; if it ``serves``, it has begun ``term`` itself.
    """

    host: HostName
    address: Name
    term: int
    journal_bytes: int
    copied_term: int
    version: int
    samples: int
    part_bytes: int
    state_version: int
    state_bytes: int
    sent_s: float
    heard_s: float
    voters: Name = ""
    leaves: bool = False
    serves: bool = False
    public_key: Name = ""


class Followed(NamedTuple):
    """The parts that a standby lacks of the run of ``term``, which is at ``version`` now.

    ``sent_s`` is copied from the request. ``host`` is the server's; ``others`` is a JSON array, see
    ``dist_net.training.server.standbys.Remembered``. A copy may take a ``share`` of the link. The
    parts are bytes of the journal from ``journal_at`` on, a JSON object of facts with the first
    bytes of a state, and bytes from ``state_at`` on of the state ``state_version``. A standby that
    has the newest state receives the facts alone.
    """

    term: int
    sent_s: float
    version: int
    host: HostName
    others: Document
    standbys: StandbyList
    journal_at: int
    state_version: int
    state_at: int
    share: Annotated[float, Limits(low=0.01, high=1.0)]
    parts: Payloads


WorkerMessage = Join | Pull | Push | Heartbeat | Leave
ServerMessage = Welcome | Refuse | Work | Alive | Stop
ObserverMessage = (
    StatusRequest | StatusReport | SnapshotRequest | Snapshot | Shutdown | ForgetMember
)
HostMessage = Enroll | Enrolled | RecipeRequest | RecipeOffer
StandbyMessage = Follow | Followed
Message = (
    WorkerMessage | ServerMessage | ObserverMessage | HostMessage | StandbyMessage | ServingMessage
)
