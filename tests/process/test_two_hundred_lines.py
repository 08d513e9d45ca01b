"""The single-file example: it learns, loses a worker, and applies each sample exactly once."""

import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import zmq

EXAMPLE = Path(__file__).parents[2] / "examples" / "two_hundred_lines.py"


@pytest.fixture(scope="module")
def example() -> SimpleNamespace:
    with patch.dict(os.environ):  # the file sets the number of BLAS threads
        return SimpleNamespace(**runpy.run_path(str(EXAMPLE)))


def test_it_is_short_and_independent() -> None:
    text = EXAMPLE.read_text()
    assert len(text.splitlines()) <= 200
    imported = set(re.findall(r"^(?:import|from) (\w+)", text, re.MULTILINE))
    assert imported - set(sys.stdlib_module_names) == {"numpy", "zmq"}
    assert "pickle" not in imported


@pytest.mark.parametrize("options", [[], ["--async"]])
def test_it_learns_and_survives_the_worker_that_it_kills(options: list[str]) -> None:
    command = [sys.executable, EXAMPLE, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "killed worker 1" in done.stdout
    updates, tenths = numbers(r"([\d,]+) updates; mean staleness \d+\.(\d)", done.stdout)
    assert (updates, tenths > 0) == ((900, True) if options else (300, False))
    leases, expired = numbers(r"([\d,]+) leases, of which ([\d,]+) expired", done.stdout)
    assert leases > expired > 0
    applied, samples = numbers(r"([\d,]+) of ([\d,]+) samples", done.stdout)
    assert applied == samples == 72_000
    assert float(re.search(r"([\d.]+)%", done.stdout)[1]) > 90


class KillingSocket:
    """A socket that kills a worker when its ``number``-th message arrives."""

    def __init__(self, socket: zmq.Socket, name: str, process: subprocess.Popen, number: int):
        self._socket, self._name, self._process = socket, name.encode(), process
        self.left = number
        self.poll, self.send_multipart = socket.poll, socket.send_multipart

    def recv_multipart(self) -> list[bytes]:
        message = self._socket.recv_multipart()
        if message[0] == self._name:
            self.left -= 1
            if self.left == 0:
                self._process.kill()
        return message


Server = tuple[zmq.Socket, dict[str, subprocess.Popen]]


@contextmanager
def server_with_workers() -> Iterator[Server]:
    """A server's socket, and three workers that connect to it."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        socket.linger = 0
        address = f"tcp://127.0.0.1:{socket.bind_to_random_port('tcp://127.0.0.1')}"
        names = "worker 1", "worker 2", "worker 3"
        processes = {n: subprocess.Popen([sys.executable, EXAMPLE, address, n]) for n in names}
        yield socket, processes
        for process in processes.values():
            process.kill()
            process.wait()


@pytest.fixture
def server() -> Iterator[Server]:
    with server_with_workers() as server:
        yield server


@pytest.mark.parametrize("number", [1, 2, 90])
def test_a_second_worker_may_die_at_any_moment(example, server, capsys, number: int) -> None:
    socket, processes = server
    killing = KillingSocket(socket, "worker 2", processes["worker 2"], number)
    example.serve(killing, processes, initial(example), samples=1200)
    assert killing.left <= 0
    applied, samples = numbers(r"([\d,]+) of ([\d,]+) samples", capsys.readouterr().out)
    assert applied == samples


def test_its_gradients_agree_with_differences(example) -> None:
    points, labels = example.spirals(seed=0)
    weights, generator = initial(example), np.random.default_rng(1)
    direction = generator.normal(size=weights.size)

    def loss_at(distance: float):
        parameters = example.unpack(weights + distance * direction)
        return example.mean_cross_entropy(example.predict(points, parameters), labels), parameters

    found = np.concatenate([each.ravel() for each in example.gradients(*loss_at(0.0))])
    slope = (loss_at(1e-6)[0].value - loss_at(-1e-6)[0].value) / 2e-6
    assert found @ direction == pytest.approx(slope, rel=1e-6)


def initial(example: SimpleNamespace) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.5, sum(example.SIZES))


def numbers(pattern: str, text: str) -> list[int]:
    return [int(each.replace(",", "")) for each in re.search(pattern, text).groups()]
