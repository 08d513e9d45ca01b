"""The requests that wait, in lanes of those that may share a batch. Pure; time is passed in."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from itertools import takewhile
from typing import NamedTuple

from dist_net.serving.pool.requests import Payload, Question

STALE_DEADLINES = 64


class LaneKey(NamedTuple):
    """What the requests of one batch have in common; ``version`` None: the newest."""

    model: str
    version: int | None
    is_picture: bool

    @classmethod
    def of(cls, question: Question) -> LaneKey:
        """The lane that a question waits in."""
        return cls(question.model, question.version, question.is_picture)


@dataclass(slots=True, eq=False)
class PlannedBatch:
    """Requests that will run together, decided when each is admitted: its answer's time depends
    on it.

    ``most_rows``: up to how many others may join; ``rows``: of those that wait.
    """

    most_rows: int
    rows: int = 0


NOTHING = PlannedBatch(0)  # which nobody joins


@dataclass(slots=True, eq=False)
class Request:
    """One that was admitted. Times are on the pool's clock.

    ``key.version``: what it must be answered by. ``counted``: the version whose statistics count it
    until it runs. ``runs_alone``: its worker was lost. ``lost_alone``: how often that was while it
    was the only one in its batch. ``is_cancelled``: it runs, and nobody wants the answer.
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
    planned: PlannedBatch = NOTHING


@dataclass(slots=True, eq=False)
class Lane:
    """The requests that may share batches, oldest first. Never empty.

    ``rows`` of all of them, in ``batches``; ``last`` is the one that others may join.
    """

    key: LaneKey
    requests: OrderedDict[int, Request] = field(default_factory=OrderedDict)
    rows: int = 0
    batches: int = 0
    last: PlannedBatch = NOTHING

    @property
    def oldest(self) -> Request:
        """The one that is first served."""
        return next(iter(self.requests.values()))

    @property
    def next_rows(self) -> int:
        """The rows of the batch that goes next."""
        return self.oldest.planned.rows

    @property
    def is_full(self) -> bool:
        """Whether waiting would add nothing to the next batch."""
        first = self.oldest.planned
        return first is not self.last or first.rows >= first.most_rows

    def joins(self, rows: int, most_rows: int) -> bool:
        """Whether a request joins the last batch, if it wants no more than ``most_rows`` in it."""
        last = self.last
        return 0 < last.rows <= min(last.most_rows, most_rows) - rows


class RequestQueue:
    """Requests in lanes, one lane for each kind of batch. No operation walks over the requests."""

    def __init__(self) -> None:
        self._queued: dict[int, Request] = {}
        self._lanes: dict[LaneKey, Lane] = {}
        self._deadlines: list[tuple[float, int]] = []

    def __len__(self) -> int:
        return len(self._queued)

    @property
    def lanes(self) -> dict[LaneKey, Lane]:
        """Every lane that has requests."""
        return self._lanes

    def add(self, request: Request, most_rows: int) -> None:
        """Let it wait behind the others, in a batch of ``most_rows`` at most, or alone."""
        lane = self._lane(request.key)
        if lane.joins(request.rows, most_rows):
            if most_rows < lane.last.most_rows:
                lane.last.most_rows = most_rows
        else:
            lane.last = PlannedBatch(most_rows)
        request.planned = lane.last
        self._place(request, lane)

    def put_back(self, request: Request) -> None:
        """Let it wait before the others, with those it was with: it was on its way once."""
        lane = self._lane(request.key)
        if request.runs_alone:
            request.planned = PlannedBatch(request.rows)
        self._place(request, lane)
        lane.requests.move_to_end(request.request_id, last=False)

    def _lane(self, key: LaneKey) -> Lane:
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = Lane(key)
        return lane

    def _place(self, request: Request, lane: Lane) -> None:
        lane.requests[request.request_id] = request
        lane.rows += request.rows
        lane.batches += not request.planned.rows
        request.planned.rows += request.rows
        self._queued[request.request_id] = request
        heappush(self._deadlines, (request.deadline_s, request.request_id))
        # Those that ran in time leave their deadlines here.
        if len(self._deadlines) > 2 * len(self._queued) + STALE_DEADLINES:
            self._deadlines = [(one.deadline_s, one.request_id) for one in self._queued.values()]
            heapify(self._deadlines)

    def remove(self, request: Request) -> bool:
        """Take it out; False: it does not wait here."""
        if self._queued.pop(request.request_id, None) is None:
            return False
        lane = self._lanes[request.key]
        del lane.requests[request.request_id]
        lane.rows -= request.rows
        request.planned.rows -= request.rows
        lane.batches -= not request.planned.rows
        if not lane.requests:
            del self._lanes[request.key]
        return True

    def by_age(self) -> list[Lane]:
        """The lanes, the one with the oldest request first."""
        lanes = list(self._lanes.values())
        if len(lanes) > 1:
            lanes.sort(key=lambda lane: lane.oldest.admitted_s)
        return lanes

    def take(self, lane: Lane) -> list[Request]:
        """Take the lane's next batch out."""
        planned = lane.oldest.planned
        batch = list(takewhile(lambda one: one.planned is planned, lane.requests.values()))
        for request in batch:
            self.remove(request)
        return batch

    def expired(self, now: float) -> list[Request]:
        """Take out all whose deadline has come."""
        found = []
        while (deadline_s := self.next_deadline_s()) is not None and deadline_s <= now:
            request = self._queued[self._deadlines[0][1]]
            self.remove(request)
            found.append(request)
        return found

    def next_deadline_s(self) -> float | None:
        """When the next one expires."""
        while self._deadlines:
            if self._deadlines[0][1] in self._queued:
                return self._deadlines[0][0]
            heappop(self._deadlines)
        return None

    def bind(self, model: str, version: int) -> int:
        """Make all that asked for the model's newest version ask for this one; how many did."""
        bound = 0
        for key in [LaneKey(model, None, False), LaneKey(model, None, True)]:
            lane = self._lanes.get(key)
            for request in list(lane.requests.values()) if lane else []:
                self.remove(request)
                request.key = key._replace(version=version)
                self.add(request, request.planned.most_rows)
                bound += 1
        return bound
