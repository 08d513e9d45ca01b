"""The requests that wait, in one lane for each kind of batch."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from itertools import takewhile
from typing import NamedTuple

from dist_net.serving.pool.requests import Payload, Question

STALE_DEADLINES = 64


class LaneKey(NamedTuple):
    """What the requests of a batch have in common; ``version`` None: the newest."""

    model: str
    version: int | None
    is_picture: bool

    @classmethod
    def of(cls, question: Question) -> LaneKey:
        return cls(question.model, question.version, question.is_picture)


@dataclass(slots=True, eq=False)
class PlannedBatch:
    """Requests that will run together. Decided at admission, which promises an answer in time.

    ``most_rows``: how many it may have; ``rows``: how many it has.
    """

    most_rows: int
    rows: int = 0


NO_BATCH = PlannedBatch(0)  # nobody can join it


@dataclass(slots=True, eq=False)
class Request:
    """A question that was admitted. Times are on the pool's clock.

    ``key.version``: the version that must answer it. ``counted``: the version whose statistics
    count it until it runs. ``runs_alone``: a worker was lost with it. ``lost_alone``: how often one
    was lost with it alone. ``is_cancelled``: it runs, but nobody wants the answer any more.
    """

    request_id: int
    key: LaneKey
    payload: Payload
    rows: int
    admitted_s: float
    deadline_s: float
    counted: int
    runs_alone: bool = False
    lost_alone: int = 0
    is_cancelled: bool = False
    planned: PlannedBatch = NO_BATCH


@dataclass(slots=True, eq=False)
class Lane:
    """Requests that may share batches, oldest first. Never empty.

    They have ``rows`` rows in ``batches`` batches; ``last`` is the one that others may join.
    """

    key: LaneKey
    requests: OrderedDict[int, Request] = field(default_factory=OrderedDict)
    rows: int = 0
    batches: int = 0
    last: PlannedBatch = NO_BATCH

    @property
    def oldest(self) -> Request:
        """The request that is served first."""
        return next(iter(self.requests.values()))

    @property
    def next_rows(self) -> int:
        return self.oldest.planned.rows

    @property
    def is_full(self) -> bool:
        """Whether nothing can join the next batch any more."""
        first = self.oldest.planned
        return first is not self.last or first.rows >= first.most_rows

    def joins(self, rows: int, most_rows: int) -> bool:
        """Whether a request of ``rows`` fits into the last batch and allows ``most_rows`` there."""
        last = self.last
        return 0 < last.rows <= min(last.most_rows, most_rows) - rows


class RequestQueue:
    """``lanes`` has those with requests. No operation walks over all requests."""

    def __init__(self) -> None:
        self._queued: dict[int, Request] = {}
        self.lanes: dict[LaneKey, Lane] = {}
        self._deadlines: list[tuple[float, int]] = []

    def __len__(self) -> int:
        return len(self._queued)

    def add(self, request: Request, most_rows: int) -> None:
        """Put it at the end of its lane, in a batch of at most ``most_rows``, or alone."""
        lane = self._lane(request.key)
        if lane.joins(request.rows, most_rows):
            if most_rows < lane.last.most_rows:
                lane.last.most_rows = most_rows
        else:
            lane.last = PlannedBatch(most_rows)
        request.planned = lane.last
        self._place(request, lane)

    def put_back(self, request: Request) -> None:
        """Put it back at the head of its lane, into the batch that it was in."""
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

    def _place(self, request: Request, lane: Lane) -> None:
        lane.requests[request.request_id] = request
        lane.rows += request.rows
        lane.batches += not request.planned.rows
        request.planned.rows += request.rows
        self._queued[request.request_id] = request
        heappush(self._deadlines, (request.deadline_s, request.request_id))
        # Requests that ran in time leave their deadlines here.
        if len(self._deadlines) > 2 * len(self._queued) + STALE_DEADLINES:
            self._deadlines = [(one.deadline_s, one.request_id) for one in self._queued.values()]
            heapify(self._deadlines)

    def remove(self, request: Request) -> bool:
        """Take it out; False if it is not in the queue."""
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
        """The lanes, that of the oldest request first."""
        lanes = list(self.lanes.values())
        if len(lanes) > 1:
            lanes.sort(key=lambda lane: lane.oldest.admitted_s)
        return lanes

    def take(self, lane: Lane) -> list[Request]:
        """Take out the lane's next batch."""
        planned = lane.oldest.planned
        batch = list(takewhile(lambda one: one.planned is planned, lane.requests.values()))
        for request in batch:
            self.remove(request)
        return batch

    def expired(self, now: float) -> list[Request]:
        """Take out all whose deadline has passed."""
        found = []
        while (deadline_s := self.next_deadline_s()) is not None and deadline_s <= now:
            request = self._queued[self._deadlines[0][1]]
            self.remove(request)
            found.append(request)
        return found

    def next_deadline_s(self) -> float | None:
        """When the next request expires."""
        while self._deadlines:
            if self._deadlines[0][1] in self._queued:
                return self._deadlines[0][0]
            heappop(self._deadlines)
        return None

    def bind(self, model: str, version: int) -> int:
        """Make all requests for the newest version ask for this one; returns how many."""
        bound = 0
        for key in [LaneKey(model, None, False), LaneKey(model, None, True)]:
            lane = self.lanes.get(key)
            for request in list(lane.requests.values()) if lane else []:
                self.remove(request)
                request.key = key._replace(version=version)
                self.add(request, request.planned.most_rows)
                bound += 1
        return bound
