"""A pool's processes where its workers are on the nodes of a Ray cluster; the loader is here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from dist_net.errors import DistNetError
from dist_net.processes.child import RunningChild
from dist_net.processes.crew import Crew
from dist_net.processes.pool_children import PoolChildren
from dist_net.processes.roles import Role

POLL_S = 0.1


class PoolOnRay(PoolChildren):
    """A child here for each role, and the crew elsewhere."""

    def __init__(self, roles: Sequence[Role], fork_server: str, logs: Path, crew: Crew) -> None:
        super().__init__(roles, fork_server, logs)
        self._crew = crew
        self._told: set[RunningChild] = set()  # those whose end the gateway knows of

    def start(
        self,
        ended: Callable[[int, str, str], None],
        failed: Callable[[DistNetError], bool],
    ) -> None:
        super().start(ended, failed)
        self._crew.start()
        self._looking = self._loop.create_task(self._look_after_crew())

    def kill(self, process_id: int, host: str, reason: str) -> None:
        super().kill(process_id, host, reason)
        for child in self._crew.children:
            if child.exit_code is None and (child.process_id, child.host) == (process_id, host):
                child.kill()

    def close(self, grace_s: float) -> None:
        self._looking.cancel()
        self._crew.end(grace_s)
        super().close(grace_s)

    async def _look_after_crew(self) -> None:
        while True:
            await asyncio.sleep(POLL_S)
            over = self._crew.ended
            for child in {worker.child for worker in over} - self._told:
                self._told.add(child)
                self._ended(child.process_id, child.host, child.last_words)
            self._crew.look_after(over)
            if (failure := self._crew.failure) is not None:
                self._failed(failure)
