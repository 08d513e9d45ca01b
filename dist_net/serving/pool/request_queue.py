"""The queued requests of a model, in one lane for each kind of batch."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from itertools import takewhile
from typing import NamedTuple

from dist_net.serving.pool.requests import InferenceRequest, Payload


class LaneKey(NamedTuple):
    """The properties that all requests of a batch share; ``version`` None: the newest."""

    model: str
    version: int | None
    is_image: bool

    @classmethod
    def from_request(cls, request: InferenceRequest) -> LaneKey:
        return cls(request.model, request.version, request.is_image)


@dataclass(slots=True, eq=False)
class PlannedBatch:
    """Requests that will run together. Fixed at admission, which promises an answer in time.

    It has ``rows`` of at most ``max_rows`` rows.
    """

    max_rows: int
    rows: int = 0


NO_BATCH = PlannedBatch(0)  # no request can join it


@dataclass(slots=True, eq=False)
class QueuedRequest:
    """An admitted request. Times are on the pool's clock.

    ``key.version``: the version that must answer it. ``counted``: the version whose statistics
    count it until it runs. ``runs_alone``: a worker was lost with it. ``is_unwanted``: it was
    cancelled or expired while it runs, so its answer is dropped.
    """

    request_id: int
    key: LaneKey
    payload: Payload
    rows: int
    admitted_s: float
    deadline_s: float
    counted: int
    runs_alone: bool = False
    is_unwanted: bool = False
    planned: PlannedBatch = NO_BATCH


@dataclass(slots=True, eq=False)
class Lane:
    """Requests that may share batches, oldest first. Never empty.

    They have ``rows`` rows in ``batches`` batches; further requests may join the ``last``.
    """

    key: LaneKey
    requests: OrderedDict[int, QueuedRequest] = field(default_factory=OrderedDict)
    rows: int = 0
    batches: int = 0
    last: PlannedBatch = NO_BATCH

    @property
    def oldest(self) -> QueuedRequest:
        """The next request."""
        return next(iter(self.requests.values()))

    @property
    def next_rows(self) -> int:
        return self.oldest.planned.rows

    @property
    def is_full(self) -> bool:
        """Whether no request can join the next batch."""
        first = self.oldest.planned
        return first is not self.last or first.rows >= first.max_rows

    def joins(self, rows: int, max_rows: int) -> bool:
        """Return whether ``rows`` fit into the last batch, within ``max_rows`` in total."""
        last = self.last
        return 0 < last.rows <= min(last.max_rows, max_rows) - rows


class RequestQueue:
    """The requests in ``lanes``, which are never empty. No operation iterates over all requests."""

    def __init__(self) -> None:
        self._queued: dict[int, QueuedRequest] = {}
        self.lanes: dict[LaneKey, Lane] = {}

    def __len__(self) -> int:
        return len(self._queued)

    def add(self, request: QueuedRequest, max_rows: int) -> None:
        """Append a request to its lane, in a batch of at most ``max_rows``, or alone."""
        lane = self._lane(request.key)
        if request.runs_alone:
            max_rows = request.rows
        if lane.joins(request.rows, max_rows):
            if max_rows < lane.last.max_rows:
                lane.last.max_rows = max_rows
        else:
            lane.last = PlannedBatch(max_rows)
        request.planned = lane.last
        self._place(request, lane)

    def put_back(self, request: QueuedRequest) -> None:
        """Put a request back at the head of its lane, into its former batch."""
        lane = self._lane(request.key)
        if request.runs_alone:
            request.planned = PlannedBatch(request.rows)
        self._place(request, lane)
        lane.requests.move_to_end(request.request_id, last=False)

    def _lane(self, key: LaneKey) -> Lane:
        lane = self.lanes.get(key)
        if lane is None:
            lane = self.lanes[key] = Lane(key)
        return lane

    def _place(self, request: QueuedRequest, lane: Lane) -> None:
        lane.requests[request.request_id] = request
        lane.rows += request.rows
        lane.batches += not request.planned.rows
        request.planned.rows += request.rows
        self._queued[request.request_id] = request

    def remove(self, request: QueuedRequest) -> bool:
        """Remove a request; return False if it is not in the queue."""
        if self._queued.pop(request.request_id, None) is None:
            return False
        lane = self.lanes[request.key]
        del lane.requests[request.request_id]
        lane.rows -= request.rows
        request.planned.rows -= request.rows
        lane.batches -= not request.planned.rows
        if not lane.requests:
            del self.lanes[request.key]
        return True

    def by_age(self) -> list[Lane]:
        """Return the lanes in the order of their oldest requests."""
        lanes = list(self.lanes.values())
        if len(lanes) > 1:
            lanes.sort(key=lambda lane: lane.oldest.admitted_s)
        return lanes

    def take(self, lane: Lane) -> list[QueuedRequest]:
        """Remove and return the lane's next batch."""
        planned = lane.oldest.planned
        batch = list(takewhile(lambda one: one.planned is planned, lane.requests.values()))
        for request in batch:
            self.remove(request)
        return batch

    def bind(self, version: int) -> int:
        """Bind all requests for the newest version to ``version``; return their number."""
        bound = 0
        for lane in [lane for key, lane in self.lanes.items() if key.version is None]:
            for request in list(lane.requests.values()):
                self.remove(request)
                request.key = request.key._replace(version=version)
                self.add(request, request.planned.max_rows)
                bound += 1
        return bound
