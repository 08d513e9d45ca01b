"""Every request in the pool, from its admission to its end; queued requests wait by client."""

import logging
import math
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from itertools import chain, islice, takewhile
from typing import NamedTuple

from dist_net.images.stated_size import stated_pixels
from dist_net.serving.pool.membership import RunningBatch, Worker
from dist_net.serving.pool.requests import EndRequest, InferenceRequest, Result, Status
from dist_net.serving.pool.versions import ModelVersions, Version, VersionState
from dist_net.wire.serving_messages import BatchDone

logger = logging.getLogger(__name__)

SHORT_BATCH_S = 0.005
"""A worker receives its next batch before it finishes a batch that is shorter than this: waiting
for the message would cost more than the computation."""

MIN_COST_S = 1e-4
ALIKE_FACTOR = 2
MAX_RISE = 4
"""A measurement counts as at most this multiple of the expected time: it may be an accident."""
RISES, FALLS = 0.5, 0.1
"""The weights of a measurement above and below the expected time, which is thus rather too long."""

CRASHES_ALONE = 2
"""A payload that was alone with a lost worker this often is taken to be the cause."""
MAX_SUSPECTS = 1024  # the oldest are forgotten first
GUILTY_INPUTS = 3
WITHIN_S = 60.0
"""A version that ``GUILTY_INPUTS`` inputs crashed ``WITHIN_S`` pauses until the first is as old."""

STALE_DEADLINES = 64
ACTIVE_S = 1.0
"""A client counts as active until this long after its last request or answer."""
REMEMBERED_S = 60.0  # how long the account of a client without requests is kept
MAX_VOTES = 256
NEWEST_WEIGHT = 0.25
"""The weight of a measurement in the moving means, which adapt within a few batches."""


def size_of(request: InferenceRequest) -> int:
    """Return the bytes of a request, and the pixels of an image: its decoder reads both."""
    payload = request.payload
    return len(payload) + (stated_pixels(payload) if request.is_image else 0)


class Costs:
    """The expected seconds of a request, for each power of two of its size, from earlier requests.

    Sizes never seen take as long as in ``others``; else as the nearest that was seen, or in
    proportion if they are larger.
    """

    def __init__(self, others: "Costs | None" = None) -> None:
        self._others = others
        self._seconds: dict[tuple[bool, int], float] = {}

    def of(self, request: InferenceRequest) -> float:
        """Return the seconds that a request will take; 0 if none like it has been measured."""
        is_image, bits = kind = _class_of(request)
        seconds = self._seconds.get(kind)
        if seconds is None and self._others is not None:
            return self._others.of(request)
        if seconds is None:
            known = [each for kind, each in self._seconds if kind == is_image]
            nearest = min(known, key=lambda each: abs(each - bits), default=bits)
            seconds = self._seconds.get((is_image, nearest), 0.0) * 2 ** max(0, bits - nearest)
        return seconds

    def learn(self, request: InferenceRequest, took_s: float) -> None:
        measured_s, kind = max(took_s, MIN_COST_S), _class_of(request)
        usual_s = self._seconds.setdefault(kind, measured_s)
        rise_s = min(measured_s, MAX_RISE * usual_s) - usual_s
        self._seconds[kind] += (RISES if rise_s > 0 else FALLS) * rise_s


def _class_of(request: InferenceRequest) -> tuple[bool, int]:
    return request.is_image, request.size.bit_length()


def are_alike(one_s: float, other_s: float) -> bool:
    """Return whether rows of these costs may share a batch: neither waits for the other."""
    return max(one_s, other_s) <= max(SHORT_BATCH_S, ALIKE_FACTOR * min(one_s, other_s))


class BatchTerms(NamedTuple):
    """The limits of a batch: rows of a version, ``row_s`` each; see ``take``."""

    version: int
    max_rows: int
    row_s: float
    lends: bool


@dataclass(slots=True, eq=False)
class ClientQueue:
    """The waiting requests of one client to one model, oldest first, and its account.

    ``costs``: the times of its requests by size; ``cost_s``: on average (0: unknown). ``pending``:
    the number of its unanswered requests. ``apart_until_s``: until then its requests share no batch
    with other clients: until its first answer, and again after a slow or failed answer.
    ``request_s``: the mean time between its requests that leave the queue; ``left_s``: when one
    left, or when the queue began; ``left``: the number that left since then.
    """

    model: str
    client: str
    costs: Costs
    seen_s: float = 0.0
    requests: OrderedDict[int, InferenceRequest] = field(default_factory=OrderedDict)
    pending: int = 0
    cost_s: float = 0.0
    apart_until_s: float = math.inf
    request_s: float = 0.0
    left_s: float = 0.0
    left: int = 0

    @property
    def oldest(self) -> InferenceRequest:
        return next(iter(self.requests.values()))

    def next(self, now: float, lends: bool, suspects: bool = False) -> InferenceRequest | None:
        """Return the oldest; or if that waited half its time, the newest: the queue is too slow.

        Without ``suspects``, skip requests that must run alone. With ``lends``, the newest that was
        not lent before: if it is never answered, the others, which begin at the other end, are in
        time for it.
        """
        requests = self.requests.values()
        oldest = next((one for one in requests if suspects or not one.runs_alone), None)
        if not lends and (oldest is None or oldest.runs_alone or not _is_late(oldest, now)):
            return oldest
        newest = (one for one in reversed(requests) if not (one.lent or one.runs_alone))
        return next(newest, None if lends else oldest)

    def is_too_slow(self, enough: int, now: float) -> bool:
        """Return whether the oldest request is late, but the newest ``enough`` are not."""
        last = next(islice(reversed(self.requests.values()), enough - 1, None), None)
        return last is not None and _is_late(self.oldest, now) and not _is_late(last, now)

    def measure_rate(self, now: float) -> None:
        """Count a request that has left the queue because a worker computes or has answered it."""
        self.left += 1
        if now > self.left_s:  # not for each request of a batch
            self.request_s += NEWEST_WEIGHT * ((now - self.left_s) / self.left - self.request_s)
            self.left_s, self.left = now, 0

    @property
    def wait_s(self) -> float:
        """The time until all requests have left the queue, at the measured rate."""
        return len(self.requests) * self.request_s


class Quarantine:
    """The payloads that lost workers computed, as digests by version: guilty ones never run again.

    Each has the number of losses that it was alone in since a version last answered it. A payload
    with ``CRASHES_ALONE`` is guilty. It fails from then on; several guilty payloads break their
    version for a while, so that workers remain for other models.
    """

    def __init__(self) -> None:
        self._losses: OrderedDict[tuple[str, int, bytes], int] = OrderedDict()
        self._guilty_s: dict[tuple[str, int], list[float]] = {}  # the last few, by version

    def add(self, request: InferenceRequest, version: int, is_alone: bool, now: float) -> None:
        """Count the death of a worker that computed this request."""
        model, key = request.model, (request.model, version, request.digest)
        losses = self._losses[key] = self._losses.get(key, 0) + is_alone
        if len(self._losses) > MAX_SUSPECTS:
            self._losses.popitem(last=False)
        if is_alone and losses == CRASHES_ALONE:
            logger.error("input_quarantined model=%s version=%d", model, version)
            recent = {
                of: times for of, times in self._guilty_s.items() if times[-1] > now - WITHIN_S
            }
            recent[model, version] = [*recent.get((model, version), ()), now][-GUILTY_INPUTS:]
            self._guilty_s = recent

    def is_suspect(self, request: InferenceRequest, version: int) -> bool:
        """Return whether a worker died of it, or of its batch, so that it must run alone."""
        return self._deaths(request, version) is not None

    def clear(self, request: InferenceRequest, version: int) -> None:
        self._losses.pop((request.model, version, request.digest), None)

    def refusal(self, request: InferenceRequest, version: int, now: float) -> Result | None:
        """Return the result of a request that must not run, or None if it may."""
        model = request.model
        guilty_s = self._guilty_s.get((model, version), [])
        broken_s = guilty_s[0] + WITHIN_S - now if len(guilty_s) == GUILTY_INPUTS else 0.0
        if broken_s > 0:
            reason = (
                f"version {version} of {model} is paused: {GUILTY_INPUTS} inputs ended the workers "
                f"that computed them, {CRASHES_ALONE} each, within {WITHIN_S:g} s"
            )
            return Result(Status.UNAVAILABLE, version, reason=reason, retry_after_s=broken_s)
        if (self._deaths(request, version) or 0) < CRASHES_ALONE:
            return None
        reason = f"this input ended {CRASHES_ALONE} workers that computed it alone"
        return Result(Status.FAILED, version, reason=reason)

    def _deaths(self, request: InferenceRequest, version: int) -> int | None:
        if not self._losses:  # a digest of 32 MiB takes some 30 ms
            return None
        return self._losses.get((request.model, version, request.digest))


class OpenRequests:
    """Requests without an answer, whether queued or running.

    Trusted workers take requests out of the queues. Requests that other workers compute stay
    queued, *lent*: a trusted worker computes them too in their turn, and the first answer counts.

    ``waiting``: by model, the clients with queued requests; no operation iterates over all
    requests. ``costs``: by model, the times of all clients' requests. ``unsettled``: models with
    versions that may advance, as no request blocks them any more.
    """

    def __init__(self, models: Mapping[str, ModelVersions], ids: Iterator[int]) -> None:
        self.waiting: dict[str, dict[str, ClientQueue]] = {}
        self.unsettled: dict[str, None] = {}  # in order, or a simulation could not be repeated
        self.quarantine = Quarantine()
        self.costs: dict[str, Costs] = defaultdict(Costs)
        self._models = models
        self._ids = ids
        self._requests: dict[int, InferenceRequest] = {}
        self._deadlines: list[tuple[float, int]] = []
        self._queues: OrderedDict[tuple[str, str], ClientQueue] = OrderedDict()  # last seen last

    def __len__(self) -> int:
        return len(self._requests)

    def __contains__(self, request_id: int) -> bool:
        return request_id in self._requests

    def queued(self) -> int:
        return sum(
            not request.lent
            for queues in self.waiting.values()
            for queue in queues.values()
            for request in queue.requests.values()
        )

    def queue_of(self, model: str, client: str) -> ClientQueue:
        """Return a client's queue for a model; a new one, if the client was not seen recently."""
        queue = self._queues.get((model, client))
        return queue or ClientQueue(model, client, Costs(self.costs[model]))

    def seen(self, request: InferenceRequest, now: float) -> ClientQueue:
        """Return the queue of a request, and note that its client is active now."""
        queue = self.queue_of(request.model, request.client)
        queue.seen_s = now
        self._queues[request.model, request.client] = queue
        self._queues.move_to_end((request.model, request.client))
        for key, other in [*islice(self._queues.items(), 2)]:
            if not other.pending and other.seen_s < now - REMEMBERED_S:
                del self._queues[key]
        return queue

    def has_other_clients(self, queue: ClientQueue, since_s: float) -> bool:
        """Return whether a request of another client waits, or was seen since then."""
        recent = takewhile(lambda each: each.seen_s > since_s, reversed(self._queues.values()))
        queues = chain(recent, *(each.values() for each in self.waiting.values()))
        return any(other.client != queue.client for other in queues)

    def usual_cost_s(self, model: str) -> float:
        """Return the median of recent clients' usual times; infinity if unknown."""
        recent = islice(reversed(self._queues.values()), MAX_VOTES)
        votes = sorted(each.cost_s for each in recent if each.model == model and each.cost_s)
        return votes[len(votes) // 2] if votes else math.inf

    def open(self, request: InferenceRequest, timeout_s: float, now: float) -> int:
        model = self._models[request.model]
        request.request_id = next(self._ids)
        if request.version is None and (trial := model.trial) and model.may_name(trial.number):
            is_guilty = self.quarantine.refusal(request, trial.number, now) is not None
            if trial.draws(request) and not is_guilty:
                request.version, request.is_drawn = trial.number, True
        version = model.newest_number if request.version is None else request.version
        request.counted = version
        request.admitted_s, request.deadline_s = now, now + timeout_s
        request.size = size_of(request)
        self._requests[request.request_id] = request
        heappush(self._deadlines, (request.deadline_s, request.request_id))
        # The deadlines of requests that ended in time are still in the heap.
        if len(self._deadlines) > 2 * len(self._requests) + STALE_DEADLINES:
            self._deadlines = [(one.deadline_s, one.request_id) for one in self._requests.values()]
            heapify(self._deadlines)
        model.statistics_of(version).admitted += 1
        if request.version is not None:
            model.versions[version].bound += 1
        queue = self.seen(request, now)
        queue.pending += 1
        self._enqueue(request, now)
        return request.request_id

    def take(
        self,
        first: InferenceRequest,
        queues: Iterable[ClientQueue],
        terms: BatchTerms,
        now: float,
    ) -> list[InferenceRequest]:
        """Return the next batch, removed or lent: ``first``, and requests that may share it.

        The clients of ``queues`` take turns in this order until no request fits into ``max_rows``,
        or would end in time. A suspect input runs alone.
        """
        version, max_rows, row_s, lends = terms
        batch, rows = [first], first.rows
        self._leave(first, lends, now)
        own = self.queue_of(first.model, first.client)
        first_s = own.costs.of(first) / max(1, first.rows)
        may_join = [each for each in queues if each is not own and now >= each.apart_until_s]
        may_join = [own] if now < own.apart_until_s else [*may_join, own]
        while may_join and not first.runs_alone:
            for queue in [*may_join]:
                one = queue.next(now, lends) or first
                more = rows + one.rows
                ends_s = now + more * row_s
                fits = more <= max_rows and ends_s <= min(first.deadline_s, one.deadline_s)
                fits = fits and one.kind == first.kind
                fits = fits and are_alike(first_s, queue.costs.of(one) / one.rows)
                if one is first or not fits or self.quarantine.is_suspect(one, version):
                    may_join.remove(queue)
                    continue
                batch.append(one)
                rows = more
                self._leave(one, lends, now)
        return batch

    def refuse(self, request: InferenceRequest, result: Result, now: float) -> EndRequest:
        self._judge(request, result, now)
        self._close(request)
        statistics = self._models[request.model].statistics_of(result.version)
        statistics.ended(result, now - request.admitted_s, 0.0)
        return EndRequest(request.request_id, result)

    def cancel(self, request_id: int) -> None:
        """Remove a request from the queue; if a worker runs it, its answer will be dropped."""
        request = self._requests.get(request_id)
        if request is None:
            return
        self._models[request.model].statistics_of(request.counted).cancelled += 1
        self._close(request)

    def expire(self, now: float) -> list[EndRequest]:
        """End the expired requests. If a worker runs one, its answer will be dropped."""
        ended = []
        while (deadline_s := self.next_deadline_s()) is not None and deadline_s <= now:
            request = self._requests[self._deadlines[0][1]]
            allowed_s = deadline_s - request.admitted_s
            was_queued = self._is_queued(request) and not request.lent
            what = "no worker was free within" if was_queued else "a worker took longer than"
            reason = f"{what} the {allowed_s:.3g} s allowed"
            waited_s = now - request.admitted_s if was_queued else 0.0
            result = Result(Status.EXPIRED, request.counted, reason=reason, queue_s=waited_s)
            ended.append(self.refuse(request, result, now))
        return ended

    def next_deadline_s(self) -> float | None:
        """Return the time at which the next request expires."""
        while self._deadlines:
            request = self._requests.get(self._deadlines[0][1])
            if request is not None:
                return request.deadline_s
            heappop(self._deadlines)
        return None

    def complete(
        self, batch: RunningBatch, done: BatchDone, is_trusted: bool, now: float
    ) -> list[EndRequest]:
        """End the requests of a finished batch, and count them.

        Unless its worker ``is_trusted``, a child of the gateway repeats failed requests.
        """
        model, version = batch.description.name, batch.description.version
        statistics = self._models[model].statistics_of(version)
        if rows := batch.computed_rows(done):
            statistics.ran(rows, done.compute_s, now)
        transit_s = max(now - batch.sent_s - done.prepare_s - done.compute_s, 0.0)
        ended = []
        for request, result in zip(batch.requests, batch.results(done), strict=True):
            if request.runs_alone and result.status is Status.OK:
                self.quarantine.clear(request, version)
            if request.request_id not in self:  # it ended before
                continue
            if request.lent and result.status is not Status.OK and not is_trusted:
                continue
            if is_trusted:
                self._judge(request, result, now)
            self._dequeue(request, now)
            if result.status is not Status.OK and self._free(request):
                self._requeue(request, now)
                continue
            self._close(request)
            latency_s = now - request.admitted_s
            statistics.ended(result, latency_s, transit_s)
            if result.status is Status.OK:
                self._models[model].recent.add(latency_s, now)
            ended.append(EndRequest(request.request_id, result))
        return ended

    def retry(self, worker: Worker, was_killed_by_input: bool, now: float) -> list[EndRequest]:
        """Put the requests of a lost worker back at the head of their queues.

        If its batch has killed it, the requests of that are suspects: they run alone from now on,
        unless they must not run again. A worker that left or was cut off proves nothing. A probe of
        the pool has no id, and ends with its worker.
        """
        batches = list(worker.running.values())
        for request in batches[0].requests if batches and was_killed_by_input else ():
            request.runs_alone = True
            version, is_alone = batches[0].description.version, len(batches[0].requests) == 1
            self.quarantine.add(request, version, is_alone, now)
            if request.request_id in self and request is batches[0].requests[0]:
                died = Result(Status.FAILED, version)
                self._judge(request, died, now, ended_worker=True)
        ended = []
        for batch in reversed(batches):
            number = batch.description.version
            for request in reversed([one for one in batch.requests if one.request_id in self]):
                if self._is_queued(request):  # it was only lent
                    continue
                is_free = self._free(request)
                self._requeue(request, now)
                refusal = None
                if request.runs_alone and not is_free:
                    refusal = self.quarantine.refusal(request, number, now)
                if refusal is not None:
                    ended.append(self.refuse(request, refusal, now))
        return ended

    def bind(self, model: ModelVersions, version: Version, now: float) -> list[EndRequest]:
        """Bind requests without a version to this one: no later version may answer them.

        If it is gone already, as no worker could load it again, end them.
        """
        number = version.description.version
        requests = [
            one
            for one in self._requests.values()
            if one.model == model.name and one.version is None
        ]
        if model.versions.get(number) is not version:
            reason = f"no worker has version {number} of {model.name} any more; ask for the next"
            result = Result(Status.UNAVAILABLE, reason=reason)
            return [self.refuse(request, result, now) for request in requests]
        for request in requests:
            request.version = number
        version.bound += len(requests)
        return []

    def free_drawn(self, model: ModelVersions) -> None:
        """Let the newest version answer the queued requests of one that was withdrawn on trial."""
        closing = [one for one in model.versions.values() if one.state is VersionState.CLOSING]
        if any(one.bound and one.share < 1 for one in closing):
            for request in self._requests.values():
                if request.model == model.name and self._is_queued(request):
                    self._free(request)

    def _free(self, request: InferenceRequest) -> bool:
        """Let the newest version answer a drawn request; return whether it can."""
        model = self._models[request.model]
        if not request.is_drawn or request.version is None or model.newest is None:
            return False
        is_free = model.versions[request.version].takes == model.newest.takes
        if is_free:
            self._unbind(request)
        return is_free

    def _judge(
        self, request: InferenceRequest, result: Result, now: float, ended_worker: bool = False
    ) -> None:
        latency_s = now - request.admitted_s
        if self._models[request.model].judge(request, result, latency_s, ended_worker):
            self.unsettled[request.model] = None

    def _requeue(self, request: InferenceRequest, now: float) -> None:
        """Put a request back at the head of its queue."""
        self._enqueue(request, now)
        queue = self.queue_of(request.model, request.client)
        queue.requests.move_to_end(request.request_id, last=False)
        self._models[request.model].statistics_of(request.counted).retried += 1

    def _unbind(self, request: InferenceRequest) -> None:
        if request.version is not None:
            version = self._models[request.model].versions[request.version]
            request.version = None
            version.bound -= 1
            if not version.bound:
                self.unsettled[request.model] = None

    def _enqueue(self, request: InferenceRequest, now: float) -> None:
        queue = self.queue_of(request.model, request.client)
        if not queue.requests:
            queue.left_s, queue.left = now, 0
            self.waiting.setdefault(request.model, {})[request.client] = queue
        queue.requests[request.request_id] = request

    def _is_queued(self, request: InferenceRequest) -> bool:
        return request.request_id in self.queue_of(request.model, request.client).requests

    def _leave(self, request: InferenceRequest, lends: bool, now: float) -> None:
        if lends:
            request.lent = True
        else:
            self._dequeue(request, now)

    def _dequeue(self, request: InferenceRequest, now: float | None = None) -> None:
        """Remove a request from its queue, if it is queued; a worker computes it from ``now``."""
        queue = self.queue_of(request.model, request.client)
        if queue.requests.pop(request.request_id, None) is None:
            return
        if now is not None:
            queue.measure_rate(now)
        if not queue.requests:
            clients = self.waiting[request.model]
            del clients[request.client]
            if not clients:
                del self.waiting[request.model]

    def _close(self, request: InferenceRequest) -> None:
        """Forget a request; if a worker computes it, its answer will be dropped."""
        self._dequeue(request)
        del self._requests[request.request_id]
        self._queues[request.model, request.client].pending -= 1
        self._unbind(request)


def _is_late(request: InferenceRequest, now: float) -> bool:
    """Return whether half of a request's time has passed."""
    return 2 * (now - request.admitted_s) > request.deadline_s - request.admitted_s
