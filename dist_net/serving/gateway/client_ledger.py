"""The limits of each client: memory, requests in flight, and time of the gateway's event loop.

The ledger counts the bytes of requests and answers until they are read, and requests in flight.
Clients take turns on the event loop. A job is short: it parses a piece of data, starts a request,
or runs a slice of a long computation. After ``TURN_S`` of jobs, the loop handles workers and other
clients, which wait for that and the last job at most.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from types import coroutine
from typing import Any, NamedTuple, Optional, TypeVar
from weakref import WeakValueDictionary

from dist_net.errors import PoolUnavailableError, QuotaExceededError
from dist_net.wire.event_rates import EventRates

_KEPT_FREE = 8
_RETRY_AFTER_S = 1.0
_MAX_ACCOUNTS = 1024
_OTHERS = "others"
ANSWER_COPIES = 2  # of an answer in memory: as its workers sent it, and as it is written
TURN_S = 0.0001  # a request passes the loop about four times

Value = TypeVar("Value")
_ended_s = attrgetter("ended_s")


class LoopShare:
    """A client's share of the loop's time, or a connection's share of its client's (``whole``).

    ``ended_s`` is the virtual time of the end of its last job, ``now_s`` the virtual time of its
    parts.
    """

    __slots__ = ("ended_s", "jobs", "now_s", "waiting", "whole")

    def __init__(self, whole: Optional["LoopShare"]) -> None:
        self.whole = whole
        self.ended_s = self.now_s = 0.0
        self.jobs: deque[Callable[[], object]] = deque()
        self.waiting: dict[LoopShare, None] = {}  # its parts with jobs


class LoopTurns:
    """Runs jobs: next is the client that has used least of the loop, and its connection likewise.

    Start-time fair queueing (Goyal et al. 1996); idle time is not saved up. A job runs at once if
    no other waits and the last turn has time left. ``now`` returns the CPU time of this thread:
    clients do not pay for other processes.
    """

    def __init__(self, now: Callable[[], float] = time.thread_time) -> None:
        self.all = LoopShare(None)
        self._now = now
        self._is_running = self._is_planned = False
        self._began_s = self._spent_s = 0.0  # of the last turn

    def run(self, share: LoopShare, job: Callable[[], object], *, is_long: bool = False) -> None:
        """Run a job, now or in a later turn; later if it ``is_long``."""
        share.jobs.append(job)
        part = share
        while part.whole is not None:
            part.whole.waiting[part] = None
            part = part.whole
        if self._is_running or self._is_planned:
            return
        if is_long:
            self._plan_turn()
            return
        if self._now() > self._began_s + 2 * TURN_S:
            self._begin_turn()
        self._run_jobs()

    def begin(
        self, share: LoopShare, work: Coroutine[Any, Any, None]
    ) -> Coroutine[Any, Any, None] | None:
        """Run the first step of a coroutine; return the rest, or None if it has ended.

        A new task would run its first step in the loop's next turn, and count no time.
        """
        try:
            awaited = work.send(None)
        except StopIteration:
            return None
        return self._finish(share, work, awaited)

    async def in_slices(self, share: LoopShare, work: Generator[None, None, Value]) -> Value:
        """Return the result of ``work``, which yields often; a slice takes about ``TURN_S``.

        The first slice belongs to the caller's job or step, which waits for no other turn.
        """
        result: asyncio.Future[Value] = asyncio.get_running_loop().create_future()

        def run_slice() -> None:
            until_s = self._now() + TURN_S
            try:
                while not result.done():  # or the client has gone
                    next(work)
                    if self._now() > until_s:
                        self.run(share, run_slice)
                        return
            except StopIteration as end:
                result.set_result(end.value)
            except Exception as error:
                result.set_exception(error)

        run_slice()
        return await result

    def charge(self, share: LoopShare, took_s: float) -> None:
        """Count time that the loop spends for a connection, in jobs and outside of them."""
        self._spent_s += took_s
        while (whole := share.whole) is not None:
            share.ended_s = max(share.ended_s, whole.now_s) + took_s
            share = whole

    def _take_turn(self) -> None:
        self._is_planned = False
        self._begin_turn()
        self._run_jobs()

    def _plan_turn(self) -> None:
        self._is_planned = True
        asyncio.get_running_loop().call_soon(self._take_turn)

    def _begin_turn(self) -> None:
        self._began_s, self._spent_s = self._now(), 0.0

    def _run_jobs(self) -> None:
        self._is_running = True
        try:
            while self.all.waiting and self._spent_s < TURN_S:
                share = self.all
                while share.waiting:
                    share, whole = min(share.waiting, key=_ended_s), share
                    whole.now_s = max(whole.now_s, share.ended_s)
                job, part = share.jobs.popleft(), share
                while part.whole is not None and not (part.jobs or part.waiting):
                    del part.whole.waiting[part]
                    part = part.whole
                began_s = self._now()
                try:
                    job()
                finally:
                    self.charge(share, self._now() - began_s)
        finally:
            self._is_running = False
            if self.all.waiting:
                self._plan_turn()

    async def _finish(
        self, share: LoopShare, work: Coroutine[Any, Any, None], awaited: Any
    ) -> None:
        await self._steps(share, work, awaited)

    @coroutine
    def _steps(
        self, share: LoopShare, work: Coroutine[Any, Any, None], awaited: Any
    ) -> Generator[Any, None, None]:
        """Run the steps of a coroutine that waits for ``awaited``, and charge their times."""
        while True:
            step: Callable[[], Any] = partial(work.send, None)
            try:
                yield awaited
            except BaseException as error:
                step = partial(work.throw, error)
            began_s = self._now()
            try:
                awaited = step()
            except StopIteration:
                return
            finally:
                self.charge(share, self._now() - began_s)


class Quota(NamedTuple):
    """The maximum requests per second, in the mean over a second, and requests in flight."""

    rate: float = math.inf
    inflight: float = math.inf


NO_QUOTA = Quota()


@dataclass(slots=True, eq=False)
class Account:
    """Requests and bytes of the clients with one token or address since the start."""

    name: str
    quota: Quota
    requests: int = 0
    refused: int = 0
    received_bytes: int = 0
    sent_bytes: int = 0
    in_flight: int = 0


@dataclass(slots=True, eq=False, weakref_slot=True)
class ClientShare:
    """A client's part of memory, of queues, and of the event loop's time.

    Connections with one token share it; without one, all connections of an address do.
    """

    client: str
    account: Account
    loop: LoopShare
    held_bytes: int = 0


@dataclass(slots=True, eq=False)
class OpenRequest:
    """A request from its first byte until its answer is read. It holds ``size_bytes``."""

    share: ClientShare
    ledger: "ClientLedger" = field(repr=False)
    size_bytes: int = 0
    is_in_flight: bool = True

    def hold(self, size_bytes: int) -> bool:
        """Hold ``size_bytes`` from now on and return True; without room return False."""
        more_bytes, share, ledger = size_bytes - self.size_bytes, self.share, self.ledger
        held_bytes, total_bytes = share.held_bytes + more_bytes, ledger.total_bytes + more_bytes
        if more_bytes > 0 and held_bytes > ledger.limit_bytes - total_bytes:
            is_only = share.held_bytes == self.size_bytes
            if not is_only or total_bytes > ledger.max_request_bytes:
                return False
        self.size_bytes = size_bytes
        share.held_bytes, ledger.total_bytes = held_bytes, total_bytes
        return True

    def require(self, size_bytes: int) -> None:
        """Hold ``size_bytes`` from now on; without room raise PoolUnavailableError."""
        if not self.hold(size_bytes):
            raise PoolUnavailableError(
                f"unanswered requests and unread answers would hold too much of "
                f"{self.ledger.limit_bytes:,} bytes (--queue-mib) with {size_bytes:,} for this "
                f"request; send fewer or smaller requests, read the answers, or retry in "
                f"{_RETRY_AFTER_S:.0f} s",
                _RETRY_AFTER_S,
            )

    def require_answer(self, answer_bytes: int) -> None:
        """Also hold an answer; without room raise PoolUnavailableError."""
        self.require(self.size_bytes + ANSWER_COPIES * answer_bytes)

    def answered(self, answer_bytes: int) -> None:
        """Count an answer that is sent, and hold it instead of the request.

        0 bytes: the answer was read, or the client has gone.
        """
        self.share.account.sent_bytes += answer_bytes
        self.share.account.in_flight -= self.is_in_flight
        self.is_in_flight = False
        self.hold(ANSWER_COPIES * answer_bytes)


class ClientLedger:
    """Limits the clients to ``limit_bytes`` together.

    A client may hold no more than it leaves free for others (dynamic thresholds, Choudhury and
    Hahne 1998), so that many greedy clients never exhaust the memory. But its only request may take
    all but an eighth. ``quota`` limits clients that have no quota by name.
    """

    def __init__(self, limit_bytes: int, quota: Quota = NO_QUOTA) -> None:
        self.limit_bytes = limit_bytes
        self.max_request_bytes = limit_bytes - limit_bytes // _KEPT_FREE
        self.total_bytes = 0
        self.accounts: dict[str, Account] = {}
        self.turns = LoopTurns()
        self._shares: dict[str, ClientShare] = {}
        self._addresses: WeakValueDictionary[str, ClientShare] = WeakValueDictionary()
        self._quota = quota
        self._rates = EventRates()

    def share_of(self, name: str, quota: Quota = NO_QUOTA) -> ClientShare:
        """Return the share of the holders of a token."""
        quota = self._quota if quota == NO_QUOTA else quota
        share = self._shares.get(name)
        if share is None or share.account.quota != quota:
            share = self._shares[name] = self._new_share(name, name, quota)
        return share

    def share_of_address(self, host: str, kind: str = "") -> ClientShare:
        """Return the share of the connections of an address without a token, of a kind."""
        key = kind + host
        share = self._addresses.get(key) or self._new_share(key, host, self._quota)
        self._addresses[key] = share
        return share

    def begin(self, share: ClientShare, now: float) -> OpenRequest:
        """Open a request; raise QuotaExceededError beyond the client's quota."""
        account = share.account
        (rate, inflight), name, wait_s = account.quota, account.name, 0.0
        if account.in_flight >= inflight:
            limit = f"{inflight:g} requests in flight"
        elif rate < math.inf and (wait_s := self._rates.wait_s(name, rate, max(1.0, rate), now)):
            limit = f"{rate:g} requests per second"
        else:
            account.requests += 1
            account.in_flight += 1
            return OpenRequest(share, self)
        account.refused += 1
        message = f"{name} exceeds its quota of {limit}; send fewer requests"
        raise QuotaExceededError(message, wait_s)

    def _new_share(self, client: str, name: str, quota: Quota) -> ClientShare:
        """Return a client's share. Beyond ``_MAX_ACCOUNTS`` names, the others have one account."""
        if name not in self.accounts and len(self.accounts) >= _MAX_ACCOUNTS:
            name = _OTHERS
        account = self.accounts.setdefault(name, Account(name, quota))
        account.quota = quota
        return ClientShare(client, account, LoopShare(self.turns.all))
