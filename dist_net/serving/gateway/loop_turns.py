"""Whose work the event loop does next: clients share its time, and a client's connections theirs.

The work for a client comes in short jobs: to parse a piece of what it sent, to start a request, a
slice of a long computation. After ``TURN_S`` of jobs, the loop hears workers and other clients
before it continues: whatever a client sends, nobody waits for more than that and the last job.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from operator import attrgetter
from types import coroutine
from typing import Any, Optional, TypeVar

TURN_S = 0.0001  # a request passes the loop about four times

Value = TypeVar("Value")
_ended_s = attrgetter("ended_s")


class LoopShare:
    """A client's share of the loop's time, or a connection's share of its client's (``whole``).

    ``ended_s`` is the virtual time when its last job ended, ``now_s`` that of its own parts.
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
    no other waits and the last turn has time left. ``now`` returns the time that this thread has
    used: nobody pays for other processes.
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
                self._run_next()
        finally:
            self._is_running = False
            if self.all.waiting:
                self._plan_turn()

    def _run_next(self) -> None:
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
