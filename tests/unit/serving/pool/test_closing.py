"""What the loop has still to call when a gateway is closed must not touch its socket.

The sockets are fakes, which say when they are used after their end.
"""

import asyncio
import os
from itertools import count
from types import SimpleNamespace

import pytest

from children import KnownChildren
from dist_net.ground.clock import SystemClock
from dist_net.serving.gateway.gateway import Gateway
from dist_net.serving.pool.pool import Pool
from dist_net.serving.pool.requests import PoolSettings


class Socket:
    """Always has one more message to be received."""

    def __init__(self, descriptor):
        self._descriptor = descriptor
        self.is_closed = False

    def fileno(self):
        return self._descriptor

    def has_message(self):
        assert not self.is_closed
        return True

    def waiting(self, most):
        assert not self.is_closed
        return iter(())

    def send(self, node, message):
        assert not self.is_closed
        return True


@pytest.fixture
def socket():
    read, write = os.pipe()
    yield Socket(read)
    os.close(read)
    os.close(write)


def errors_after_closing(make, socket):
    """What goes wrong in the turns of the loop that follow ``close``."""
    errors = []

    async def run():
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: errors.append(context))
        it = make()
        it.start(loop)
        for _ in range(3):
            await asyncio.sleep(0)
        it.close()
        socket.is_closed = True
        for _ in range(3):
            await asyncio.sleep(0)

    asyncio.run(run())
    return errors


def test_a_closed_gateway_lets_its_socket_be(socket):
    pool = Pool(PoolSettings(), ["m"], KnownChildren(), count(1))
    assert not errors_after_closing(
        lambda: Gateway(pool, socket, SimpleNamespace(read=id), SystemClock(), None), socket
    )
