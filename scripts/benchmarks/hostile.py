"""Ten thousand hostile requests: mutated HTTP, pictures and ZeroMQ frames; who dies, what leaks.

What is sent is made of good requests by a seeded generator, so that a run can be had again.
"""

from __future__ import annotations

import random
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import zmq

from benchmarks.served import TINY_SHAPE, Gateway, Net, pictures, row_requests
from dist_net.wire.codec import encode
from dist_net.wire.serving_messages import Ask, Describe, Enlist, Greet

REQUESTS = 10_000
WARM_UP = 0.05  # of them, before memory is looked at
SEED = 0
ANSWER_S = 10.0
ENDLESS_S = 0.05  # for what the server rightly waits for more of
LONGEST_INSERTION = 64


def measure(
    net: Net, options: Sequence[str], say: Callable[[str], None], scale: float
) -> dict[str, Any]:
    """Status codes (0: no answer), deaths, and the growth of private memory in megabytes.

    What goes to ZeroMQ has no status, and is counted as such.
    """
    count = max(1, round(REQUESTS * scale))
    say(f"hostile: {count} requests")
    generator = random.Random(SEED)
    good = [Path(path).read_bytes() for path in row_requests(net.directory / "hostile", net.name)]
    statuses: Counter[str] = Counter()
    with Gateway([net.source], net.directory, *options) as gateway, zmq.Context() as context:
        processes = process_tree(gateway.child.process_id)
        send = senders(gateway, context, net.name, good, generator)
        before = 0
        for turn in range(count):
            statuses[next(send)] += 1
            if turn == round(WARM_UP * count):
                before = private_bytes(processes)
        still_there = process_tree(gateway.child.process_id)
        growth = private_bytes(processes & still_there) - before
        answers_yet = exchange(gateway.port, good[0], ANSWER_S)
    return {
        "requests": count,
        "statuses": dict(sorted(statuses.items())),
        "deaths": len(processes - still_there),
        "growth_mb": round(growth / 1e6, 1),
        "good_request_afterwards": answers_yet,
    }


def senders(
    gateway: Gateway,
    context: zmq.Context[zmq.Socket[bytes]],
    model: str,
    good: Sequence[bytes],
    generator: random.Random,
) -> Iterator[str]:
    """Sends a hostile request each time it is asked, and gives the status of its answer."""
    images = pictures()
    with context.socket(zmq.DEALER) as peer:
        peer.setsockopt(zmq.LINGER, 0)
        peer.connect(gateway.address)
        while True:
            match generator.randrange(10):
                case 0:  # a head that may promise anything
                    request = mutated(generator.choice(good), generator, first=400)
                    yield str(exchange(gateway.port, request, ENDLESS_S))
                case 1 | 2 | 3:
                    head, _, body = generator.choice(good).partition(b"\r\n\r\n")
                    request = with_body(head.splitlines()[0], mutated(body, generator))
                    yield str(exchange(gateway.port, request, ANSWER_S))
                case 4 | 5 | 6:
                    line = f"POST /v1/models/{model}/classify HTTP/1.1".encode()
                    body = mutated(generator.choice(images), generator)
                    yield str(exchange(gateway.port, with_body(line, body), ANSWER_S))
                case _:
                    peer.send_multipart(mutated_frames(model, generator), zmq.NOBLOCK, copy=True)
                    while peer.poll(0):
                        peer.recv_multipart()
                    yield "zeromq"


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
                del changed[at : at + generator.randint(1, LONGEST_INSERTION)]
            case 3:
                inserted = generator.randbytes(generator.randint(1, LONGEST_INSERTION))
                changed[at:at] = inserted
            case 4 if generator.random() < 0.2:
                del changed[at:]
    return bytes(changed)


def mutated_frames(model: str, generator: random.Random) -> list[bytes]:
    """A message to the gateway with changed, missing or further frames."""
    payload = generator.randbytes(4 * TINY_SHAPE[0] * TINY_SHAPE[1])
    message = generator.choice(
        (
            Ask(generator.randrange(2**63), model, "", False, 1.0, (payload,)),
            Ask(1, model, "7", True, 1e300, (payload[:99],)),
            Describe(generator.randrange(2**63)),
            Enlist("hostile", "here", 1),  # clients cannot pass themselves off as workers
            Greet(),
        )
    )
    frames = [bytes(frame) for frame in encode(message)]
    for _ in range(generator.randint(0, 2)):
        at = generator.randrange(len(frames))
        frames[at] = mutated(frames[at], generator)
    if generator.random() < 0.2:
        frames.insert(generator.randrange(len(frames) + 1), generator.randbytes(9))
    return frames


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
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):  # it has just ended
            continue
    tree, size = {root} & parents.keys(), -1
    while len(tree) > size:
        size = len(tree)
        tree |= {child for child, parent in parents.items() if parent in tree}
    return tree


def private_bytes(processes: set[int]) -> int:
    """Anonymous memory of all of them together."""
    total = 0
    for process in processes:
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                total += 1024 * int(line.split()[1])
    return total
