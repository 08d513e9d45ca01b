"""Peers with the key of a worker that lie: about their host, whom they heard, and who leaves."""

from collections.abc import Callable, Sequence

from dist_net.training.server.settings import RunSettings
from dist_net.wire.messages import Equipment, Heartbeat, Join, Leave, Pull, Welcome
from dist_net.wire.security import WORKER
from simulation.network import VirtualClientSocket, VirtualNetwork

BEATS_EVERY_S, PAUSE_S = 0.15, 2.0


class Liar:
    """Joins servers and visits standbys on random hosts, in the names of others, until it is over.

    It works on nothing, and never pushes a result. ``host`` is where it is, ``hosts`` are all.
    """

    def __init__(
        self,
        host: str,
        key: str,
        hosts: Sequence[str],
        network: VirtualNetwork,
        settings: RunSettings,
        is_over: Callable[[], bool],
    ) -> None:
        self._host = host
        self._key = key
        self._hosts = hosts
        self._network = network
        self._schedule = network.schedule
        self._random = network.schedule.random
        self._facts = settings.recipe_digest, settings.vector_size
        self._is_over = is_over
        self._number = 0
        self._come()

    def _come(self) -> None:
        """Join under another name, for a while."""
        if self._is_over():
            return
        self._number += 1
        names = [*self._hosts, f"invented-{self._number}"]
        name = str(self._random.choice(names))
        target = str(self._random.choice(self._hosts))
        self._schedule.note(self._key, "claims to be %s, at %s", name, target)
        owner = f"liar on {self._host}"
        socket = self._network.connect(self._host, target, owner, WORKER, self._key)
        identity = int(self._random.integers(1, 2**62))
        join = Join(name, identity, *self._facts, False, 1, Equipment(name))
        until_s = self._schedule.now_s + float(self._random.exponential(2.0))
        self._stay(socket, join, 0, until_s)

    def _stay(
        self, socket: VirtualClientSocket, join: Join, worker_id: int, until_s: float
    ) -> None:
        """Knock, or beat as a member that works, then leave, let others leave, or vanish."""
        while (answer := socket.receive()) is not None:
            if isinstance(answer, Welcome) and not worker_id:
                worker_id = answer.worker_id
                socket.send(Pull(worker_id, join.identity, 2))
        now = self._schedule.now_s
        if now < until_s:
            beat = Heartbeat(worker_id, now, join.identity, now - BEATS_EVERY_S)
            socket.send(beat if worker_id else join)
            self._schedule.after(BEATS_EVERY_S, self._stay, socket, join, worker_id, until_s)
            return
        if worker_id and self._random.random() < 0.6:
            for each in range(worker_id - 2, worker_id + 2):
                socket.send(Leave(each, join.identity))
        socket.close()
        self._schedule.after(float(self._random.exponential(PAUSE_S)), self._come)
