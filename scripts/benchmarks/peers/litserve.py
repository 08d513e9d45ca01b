"""LitServe with two workers, serving the tiny model; its process is ``litserve_server``."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path

import numpy as np

from benchmarks.errors import BenchmarkError
from benchmarks.peers.peer_process import missing_packages
from dist_net.processes.launcher import Child, ProcessSpec, end

INPUTS = 784
SEED = 0
REQUESTS = 16
START_S = 60.0
END_S = 10.0


def missing() -> str:
    """Why it cannot be measured; empty if it can."""
    return missing_packages(("litserve",))


def version() -> str:
    """Of the installed package."""
    return metadata.version("litserve")


def requests(directory: Path) -> list[str]:
    """Files of requests, each with 784 random numbers as JSON."""
    directory.mkdir()
    paths = []
    for index, row in enumerate(np.random.default_rng(SEED).random((REQUESTS, INPUTS))):
        body = json.dumps({"input": [round(float(number), 6) for number in row]}).encode()
        head = (
            f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        path = directory / f"{index}.http"
        path.write_bytes(head.encode() + body)
        paths.append(str(path))
    return paths


@contextmanager
def server(directory: Path) -> Iterator[int]:
    """A server that is ready, by its port; it and its children end with the context."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    child = Child(
        ProcessSpec("litserve", "benchmarks.peers.litserve_server", (str(port),)), directory
    )
    try:
        wait_until_ready(child, port)
        yield port
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.process_id, signal.SIGTERM)
        end([child], END_S)
        with suppress(ProcessLookupError):
            os.killpg(child.process_id, signal.SIGKILL)


def wait_until_ready(child: Child, port: int) -> None:
    """Waits until it says that its workers are there. Raises BenchmarkError."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        child.require_running()
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0) as connection:
            connection.settimeout(5.0)
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
            if connection.recv(64).startswith(b"HTTP/1.1 200"):
                return
        time.sleep(0.1)
    raise BenchmarkError(f"litserve was not ready within {START_S:g} s (log: {child.log})")
