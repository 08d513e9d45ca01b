"""Whose jobs run next, on a clock of the test."""

import asyncio
from collections import Counter
from collections.abc import Callable, Generator

import pytest

from dist_net.serving.gateway.client_ledger import TURN_S, LoopShare, LoopTurns


class Loop:
    """Jobs that take time on a clock, until a number of turns has passed."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.turns = LoopTurns(lambda: self.now_s)
        self.ran: list[str] = []

    def client(self) -> LoopShare:
        return LoopShare(self.turns.all)

    def job(self, name: str, took_s: float, then: Callable[[], object] = int) -> Callable[[], None]:
        def run() -> None:
            self.ran.append(name)
            self.now_s += took_s
            then()

        return run

    def flood(self, connection: LoopShare, name: str, took_s: float) -> None:
        """Always have another job."""

        def again() -> None:
            self.turns.run(connection, self.job(name, took_s, again))

        again()


async def pass_turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_clients_share_the_time_and_a_clients_connections_theirs() -> None:
    async def run() -> Counter[str]:
        loop = Loop()
        first, second = loop.client(), loop.client()
        for number in range(10):
            loop.flood(LoopShare(first), f"first {number}", 1e-4)
        loop.flood(LoopShare(second), "second", 4e-4)
        await pass_turns(2000)
        return Counter(loop.ran)

    ran = asyncio.run(run())
    times = {name: count * (4e-4 if name == "second" else 1e-4) for name, count in ran.items()}
    total_s = sum(times.values())
    assert times["second"] == pytest.approx(total_s / 2, rel=0.05)
    for number in range(10):
        assert times[f"first {number}"] == pytest.approx(total_s / 20, rel=0.1)


@pytest.mark.parametrize("is_same_client", [False, True])
def test_a_job_waits_for_one_job_of_those_that_flood_the_loop(is_same_client: bool) -> None:
    async def run() -> None:
        loop = Loop()
        greedy = loop.client()
        for number in range(100):
            loop.flood(LoopShare(greedy), f"flood {number}", TURN_S)
        await pass_turns(500)
        modest = LoopShare(greedy if is_same_client else loop.client())
        for _ in range(20):
            loop.ran.clear()
            loop.turns.run(modest, loop.job("modest", TURN_S / 10))
            await pass_turns(3)
            assert "modest" in loop.ran[:2]
            await pass_turns(200)

    asyncio.run(run())


def test_a_lone_job_runs_at_once_and_a_turn_ends() -> None:
    async def run() -> None:
        loop = Loop()
        connection = LoopShare(loop.client())
        loop.now_s = 1.0
        for number in range(4):
            loop.turns.run(connection, loop.job(str(number), 0.6 * TURN_S))
        assert loop.ran == ["0", "1"]  # then others are heard
        await pass_turns(3)
        assert loop.ran == ["0", "1", "2", "3"]

    asyncio.run(run())


def test_slices_and_steps_of_a_coroutine_are_charged() -> None:
    async def run() -> None:
        loop = Loop()
        client = loop.client()
        connection = LoopShare(client)

        def work() -> Generator[None, None, str]:
            for _ in range(10):
                loop.now_s += TURN_S
                yield
            return "done"

        async def request() -> None:
            loop.now_s += TURN_S
            await asyncio.sleep(0)
            loop.now_s += TURN_S
            assert await loop.turns.in_slices(connection, work()) == "done"

        rest = loop.turns.begin(connection, request())
        assert rest is not None
        await rest
        assert client.ended_s >= 10 * TURN_S

        async def cancelled() -> None:
            with pytest.raises(asyncio.CancelledError):
                await asyncio.sleep(60)
            raise LookupError

        rest = loop.turns.begin(connection, cancelled())
        assert rest is not None
        task = asyncio.ensure_future(rest)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(LookupError):
            await task

    asyncio.run(run())
