"""Ten thousand peers come to a server and go: its descriptors, memory and logs stay bounded."""

import re
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from dist_net.ground.checkpoint import read_checkpoint
from dist_net.ground.release import release
from dist_net.processes.entry import MAX_LOG_BYTES
from dist_net.wire.messages import Join, Leave, Message, Welcome
from dist_net.wire.serving_messages import JoinPool, PoolWelcome
from dist_net.wire.transport import ClientSocket
from process.test_serve_hosts import net

__all__ = ["net"]  # a fixture

Start = Callable[..., Any]
JOINS, FIRST, TOGETHER = 10_000, 2000, 20
MAX_MORE_BYTES = 16 << 20


class Watched:
    """What a process holds, and how large its logs are."""

    def __init__(self, process_id: int, logs: Path) -> None:
        self._process = Path(f"/proc/{process_id}")
        self._logs = logs

    def descriptors(self) -> int:
        return len(list((self._process / "fd").iterdir()))

    def resident_bytes(self) -> int:
        status = (self._process / "status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) << 10

    def largest_log_bytes(self) -> int:
        return max(path.stat().st_size for path in self._logs.rglob("*.log"))


def come_and_go(
    watched: Watched,
    address: str,
    hello: Callable[[int], Message],
    goodbye: Callable[[Message | None], Message | None],
    eventually: Any,
) -> None:
    """Peers come and go, some at a time; in the end nothing has grown since the first of them.

    Every other one says goodbye, if there is something to say.
    """

    def come(numbers: range) -> None:
        for first in range(numbers.start, numbers.stop, TOGETHER):
            with ExitStack() as opened:
                sockets = [opened.enter_context(ClientSocket(address)) for _ in range(TOGETHER)]
                for number, socket in enumerate(sockets, first):
                    socket.send(hello(number))
                for number, socket in enumerate(sockets, first):
                    message = goodbye(socket.receive(60))
                    if message is not None and number % 2:
                        socket.send(message)

    come(range(FIRST))
    descriptors, resident_bytes = watched.descriptors(), watched.resident_bytes()
    come(range(FIRST, JOINS))
    eventually(lambda: watched.descriptors() <= descriptors + 4)
    more_bytes = watched.resident_bytes() - resident_bytes
    print(
        f"descriptors {descriptors} and {watched.descriptors()}, resident {resident_bytes >> 20} "
        f"MiB and {more_bytes >> 10} KiB more, the largest log {watched.largest_log_bytes()} bytes"
    )
    assert more_bytes < MAX_MORE_BYTES
    assert watched.largest_log_bytes() < 1.5 * MAX_LOG_BYTES


@pytest.mark.slow
def test_a_parameter_server_outlives_ten_thousand_workers(
    start: Start, counting: str, eventually: Any, tmp_path: Path
) -> None:
    server = start(
        *("parameter-server", counting, "--epochs", "10", "--listen", "tcp://127.0.0.1:0"),
        *("--run-dir", str(tmp_path / "run")),
    )
    address = server.says(r"--connect (tcp://\S+)")[1]
    server.report(lambda report: bool(report["checkpoint_version"] is not None))
    begun = read_checkpoint(tmp_path / "run" / "checkpoint.safetensors")

    def join(number: int) -> Message:
        facts = begun.recipe_digest, begun.weights.size, False, number
        return Join(f"w{number}", number, *facts)

    def leave(answer: Message | None) -> Message:
        assert isinstance(answer, Welcome), answer
        return Leave(answer.worker_id, answer.request_id)

    watched = Watched(server.children["server"], tmp_path / "run")
    come_and_go(watched, address, join, leave, eventually)


@pytest.mark.slow
def test_a_gateway_outlives_ten_thousand_workers(
    start: Start, net: Path, eventually: Any, tmp_path: Path
) -> None:
    files = f"net={net / 'net.cfg'},weights={net / 'net.weights'},labels={net / 'labels.txt'}"
    gateway = start(
        *(
            "serve",
            files,
            "--workers",
            "1",
            "--http",
            "127.0.0.1:0",
            "--log-dir",
            str(tmp_path / "logs"),
        ),
        *("--listen-workers", "tcp://127.0.0.1:0"),
    )
    workers = gateway.says(r"--connect (tcp://\S+)")[1]

    def join_pool(number: int) -> Message:
        return JoinPool(f"w{number}", "elsewhere", number, release())

    def goodbye(answer: Message | None) -> Message | None:
        assert isinstance(answer, PoolWelcome), answer
        return Leave(answer.worker_id)

    watched = Watched(gateway.process.pid, tmp_path / "logs")
    come_and_go(watched, workers, join_pool, goodbye, eventually)
