"""The signals by which an event loop's process is asked to end."""

from __future__ import annotations

import asyncio
import signal

from dist_net.cluster.entry import INTERRUPTED


class StopSignals:
    """SIGTERM, as from a service manager, or SIGINT; made on the running event loop.

    ``exit_code``: what the process ends with if it could end in order.
    """

    def __init__(self) -> None:
        self.requested = asyncio.Event()
        self.exit_code = 0
        self._is_urgent = False
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._handle, 0)
        loop.add_signal_handler(signal.SIGINT, self._handle, INTERRUPTED)

    def is_urgent(self) -> bool:
        """Whether a second signal came, of somebody who will not wait."""
        return self._is_urgent

    async def requested_or(self, serving: asyncio.Task[object]) -> None:
        """Waits for a signal, or for the end of ``serving``, which raises what ended it."""
        requested = asyncio.create_task(self.requested.wait())
        await asyncio.wait({requested, serving}, return_when=asyncio.FIRST_COMPLETED)
        requested.cancel()
        if serving.done():
            serving.result()

    def _handle(self, exit_code: int) -> None:
        self._is_urgent = self.requested.is_set()
        self.exit_code = exit_code
        self.requested.set()
