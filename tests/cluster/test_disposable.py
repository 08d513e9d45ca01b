"""Processes that are forked for one task: their messages, limits and ends."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dist_net.processes.disposable import (
    DisposableProcess,
    DisposableProcesses,
    Send,
    limit_process,
)


def run(words: list[str], send: Send) -> None:
    match words:
        case ["echoes", *rest]:
            print("others' code prints what it likes")
            sys.stdout.flush()
            send([word.encode() for word in rest])
        case ["sends much"]:
            send(bytes(8 << 20))
        case ["takes", mib]:
            limit_process(64 << 20, 60, 64)
            try:
                send(len(bytearray(int(mib) << 20)))
            except MemoryError:
                send("too much")
        case ["opens"]:
            limit_process(64 << 20, 60, 64)
            try:
                send(len([os.dup(0) for _ in range(100)]))
            except OSError:
                send("too many")
        case ["computes"]:
            limit_process(64 << 20, 1, 64)
            while True:
                pass
        case ["crashes"]:
            os.kill(os.getpid(), signal.SIGKILL)
        case ["hangs"]:
            signal.pause()


@pytest.fixture(scope="module")
def processes() -> Iterator[DisposableProcesses]:
    processes = DisposableProcesses(run)
    yield processes
    processes.close()


def all_of(process: DisposableProcess) -> list[Any]:
    """What a process has sent until its end."""
    received = []
    while not process.end_reason:
        received += process.received()
    return received


def test_what_a_process_sends_arrives_and_what_it_prints_does_not(
    processes: DisposableProcesses,
) -> None:
    assert all_of(processes.start("one", "echoes", "a", "b")) == [[b"a", b"b"]]
    assert all_of(processes.start("two", "sends much")) == [bytes(8 << 20)]


@pytest.mark.parametrize(
    ("words", "sent"),
    [(("takes", "16"), 16 << 20), (("takes", "256"), "too much"), (("opens",), "too many")],
)
def test_memory_and_open_files_are_limited(
    processes: DisposableProcesses, words: tuple[str, ...], sent: object
) -> None:
    assert all_of(processes.start("limited", *words)) == [sent]


def test_a_process_ends_at_its_limit_or_by_its_fault_and_the_others_go_on(
    processes: DisposableProcesses,
) -> None:
    hanging = processes.start("hangs", "hangs")
    for task in ("computes", "crashes"):
        process = processes.start(task, task)
        assert all_of(process) == []
        assert process.end_reason in ("SIGKILL", "SIGXCPU")
    assert [*hanging.received()] == []
    assert not hanging.end_reason
    hanging.kill()
    assert hanging.end_reason == "SIGKILL"
    assert not Path(f"/proc/{hanging.process_id}").exists()
