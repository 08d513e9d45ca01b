"""Ten thousand hostile requests, over HTTP: nobody dies, and nothing leaks.

They are good requests that a seeded generator has damaged, so a run can be repeated.
"""

import json
import random
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from benchmarks.served import TINY, Gateway, encoded_images, row_requests, write_net
from foreign_files import graph, tensor, written

pytestmark = pytest.mark.main_path

REQUESTS = 10_000
WARM_UP = 500  # of them, before memory is looked at
ANSWER_S = 10.0
ENDLESS_S = 0.05  # where the server rightly waits for more
MAX_INSERTION = 64
LARGEST_GROWTH_BYTES = 40_000_000  # 2 to 16 MB were seen


@pytest.mark.slow
def test_hostile_requests_neither_kill_nor_leak(tmp_path: Path) -> None:
    net = write_net(TINY, tmp_path / TINY)
    good = [Path(path).read_bytes() for path in row_requests(tmp_path / "requests", net.name)]
    statuses: Counter[int] = Counter()
    with Gateway([net.source], tmp_path, "--workers", "2") as gateway:
        processes = process_tree(gateway.child.process_id)
        answers = hostile_answers(gateway, net.name, good)
        for _ in range(WARM_UP):
            statuses[next(answers)] += 1
        before = private_bytes(processes)
        for _ in range(REQUESTS - WARM_UP):
            statuses[next(answers)] += 1
        assert process_tree(gateway.child.process_id) == processes
        assert private_bytes(processes) - before < LARGEST_GROWTH_BYTES
        assert exchange(gateway.port, good[0], ANSWER_S) == 200
    assert statuses[500] == 0
    assert statuses[200] > 0
    assert statuses[400] > 0


def hostile_answers(gateway: Gateway, model: str, good: Sequence[bytes]) -> Iterator[int]:
    """Sends one hostile request after another; gives each one's status."""
    generator = random.Random(0)
    images = encoded_images()
    while True:
        match generator.randrange(7):
            case 0:  # the head may promise anything
                request = mutated(generator.choice(good), generator, first=400)
                yield exchange(gateway.port, request, ENDLESS_S)
            case 1 | 2 | 3:
                head, _, body = generator.choice(good).partition(b"\r\n\r\n")
                request = with_body(head.splitlines()[0], mutated(body, generator))
                yield exchange(gateway.port, request, ANSWER_S)
            case _:
                line = f"POST /v1/models/{model}/classify HTTP/1.1".encode()
                body = mutated(generator.choice(images), generator)
                yield exchange(gateway.port, with_body(line, body), ANSWER_S)


def with_body(line: bytes, body: bytes) -> bytes:
    """A request whose head is right."""
    return line + b"\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def mutated(content: bytes, generator: random.Random, first: int | None = None) -> bytes:
    """A few bytes changed, cut out or put in; of the ``first`` ones only, if that is given."""
    changed = bytearray(content)
    for _ in range(generator.randint(1, 8)):
        at = generator.randrange(min(first or len(changed), len(changed)) or 1)
        match generator.randrange(5):
            case 0 | 1 if changed:
                changed[at] = generator.randrange(256)
            case 2:
                del changed[at : at + generator.randint(1, MAX_INSERTION)]
            case 3:
                changed[at:at] = generator.randbytes(generator.randint(1, MAX_INSERTION))
            case 4 if generator.random() < 0.2:
                del changed[at:]
    return bytes(changed)


def exchange(port: int, request: bytes, timeout_s: float) -> int:
    """Sends a request on a connection of its own; the answer's status, or 0 for none in time."""
    try:
        with socket.create_connection(("127.0.0.1", port), ANSWER_S) as connection:
            connection.settimeout(timeout_s)
            connection.sendall(request)
            answer = connection.recv(64)
            return int(answer[9:12]) if answer.startswith(b"HTTP/1.1 ") else 0
    except (OSError, ValueError):
        return 0


def process_tree(root: int) -> set[int]:
    """A process and all that descend from it."""
    tree, waiting = set(), [root]
    while waiting:
        process = waiting.pop()
        tree.add(process)
        for children in Path(f"/proc/{process}/task").glob("*/children"):
            waiting += map(int, children.read_text().split())
    return tree


def private_bytes(processes: set[int]) -> int:
    """Anonymous memory of all of them together."""
    statuses = [Path(f"/proc/{process}/status").read_text() for process in processes]
    lines = [line for status in statuses for line in status.splitlines()]
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


QUEUE_MIB, MAX_MORE_MIB = 64, 100
OUTPUTS = 2_000_000  # of a row, 8 MB
ATTACK_S = 3.0


def wide_model(path: Path) -> Path:
    """A model whose answers are two million times as long as its requests."""
    model = graph(
        [helper.make_node("MatMul", ["x", "ones"], ["y"])],
        [tensor("x", ["N", 1])],
        [tensor("y", ["N", OUTPUTS])],
        ones=np.ones((1, OUTPUTS), np.float32),
    )
    return written(model, path)


def ask_over_http(gateway: Gateway, opened: ExitStack) -> Callable[[], None]:
    """24 connections that read no answer."""
    header = json.dumps(
        {
            "inputs": [
                {"name": "x", "shape": [1, 1], "datatype": "FP32"}
                | {"parameters": {"binary_data_size": 4}}
            ],
            "parameters": {"binary_data_output": True},
        }
    ).encode()
    head = b"POST /v2/models/wide/infer HTTP/1.1\r\nHost: localhost\r\n"
    lengths = b"Inference-Header-Content-Length: %d\r\nContent-Length: %d\r\n\r\n"
    request = head + lengths % (len(header), len(header) + 4) + header + bytes(4)
    connections = [
        opened.enter_context(socket.create_connection(("127.0.0.1", gateway.port)))
        for _ in range(24)
    ]

    def ask() -> None:
        for connection in connections:
            connection.setblocking(False)
            with suppress(OSError):
                connection.send(request)

    return ask


def test_no_client_takes_more_memory_than_the_queue_has(tmp_path: Path) -> None:
    """Without the count of what is unread, it took 540 MiB."""
    net = write_net(TINY, tmp_path / TINY)
    good = Path(row_requests(tmp_path / "requests", net.name)[0]).read_bytes()
    sources = [net.source, f"wide={wide_model(tmp_path / 'wide.onnx')}"]
    options = "--workers", "2", "--queue-mib", str(QUEUE_MIB)
    with Gateway(sources, tmp_path, *options) as gateway, ExitStack() as opened:
        largest_kib, ask = 0, ask_over_http(gateway, opened)
        until_s = time.monotonic() + ATTACK_S
        while time.monotonic() < until_s:
            ask()
            status = Path(f"/proc/{gateway.child.process_id}/status").read_text()
            largest_kib = max(largest_kib, int(status.split("VmRSS:")[1].split()[0]))
            assert exchange(gateway.port, good, ANSWER_S) == 200
    assert largest_kib / 1024 <= QUEUE_MIB + MAX_MORE_MIB
