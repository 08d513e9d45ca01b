"""The requests that wait, in lanes of those that may share a batch. Pure; time is passed in."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import NamedTuple

from dist_net.serving.requests import Payload

STALE_DEADLINES = 64


class LaneKey(NamedTuple):
    """What the requests of one batch have in common; ``version`` None: the newest."""

    model: str
    version: int | None
    is_picture: bool


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


@dataclass(slots=True, eq=False)
class Lane:
    """The requests that may share a batch, oldest first. Never empty."""

    key: LaneKey
    requests: OrderedDict[int, Request] = field(default_factory=OrderedDict)
    rows: int = 0

    @property
    def oldest(self) -> Request:
        """The one that is first served."""
        return next(iter(self.requests.values()))

    def is_full(self, max_rows: int) -> bool:
        """Whether waiting would add nothing to the next batch."""
        return self.rows >= max_rows or self.oldest.runs_alone


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

    def add(self, request: Request) -> None:
        """Let it wait behind the others."""
        lane = self._lanes.get(request.key)
        if lane is None:
            lane = self._lanes[request.key] = Lane(request.key)
        lane.requests[request.request_id] = request
        lane.rows += request.rows
        self._queued[request.request_id] = request
        heappush(self._deadlines, (request.deadline_s, request.request_id))
        # Those that ran in time leave their deadlines here.
        if len(self._deadlines) > 2 * len(self._queued) + STALE_DEADLINES:
            self._deadlines = [(one.deadline_s, one.request_id) for one in self._queued.values()]
            heapify(self._deadlines)

    def put_back(self, request: Request) -> None:
        """Let it wait before the others: it was on its way once."""
        self.add(request)
        self._lanes[request.key].requests.move_to_end(request.request_id, last=False)

    def remove(self, request: Request) -> bool:
        """Take it out; False: it does not wait here."""
        if self._queued.pop(request.request_id, None) is None:
            return False
        lane = self._lanes[request.key]
        del lane.requests[request.request_id]
        lane.rows -= request.rows
        if not lane.requests:
            del self._lanes[request.key]
        return True

    def by_age(self) -> list[Lane]:
        """The lanes, the one with the oldest request first."""
        lanes = list(self._lanes.values())
        if len(lanes) > 1:
            lanes.sort(key=lambda lane: lane.oldest.admitted_s)
        return lanes

    def take(self, lane: Lane, max_rows: int) -> list[Request]:
        """Take the lane's next batch out: in order, until another one does not fit."""
        batch: list[Request] = []
        rows = 0
        for request in lane.requests.values():
            if batch and (request.runs_alone or rows + request.rows > max_rows):
                break
            batch.append(request)
            rows += request.rows
            if request.runs_alone:
                break
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
                self.add(request)
                bound += 1
        return bound
