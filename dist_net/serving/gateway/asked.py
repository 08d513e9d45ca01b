"""The future of a request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from dist_net.serving.pool.requests import Outcome


class Asked(asyncio.Future[Outcome]):
    """An outcome that is to come; cancelling it abandons the request."""

    abandon: Callable[[], None]

    def cancel(self, msg: object = None) -> bool:
        """As every future's."""
        is_cancelled = super().cancel(msg)
        if is_cancelled:
            self.abandon()
        return is_cancelled
