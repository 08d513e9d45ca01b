"""Interrupts of a command: the first ends it in order, and no later one undoes that."""

import signal
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from dist_net import cli
from dist_net.processes.launcher import hurry


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Those of this process are as before when a test is over."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    hurry.clear()
    yield
    hurry.clear()
    for number, handler in before.items():
        signal.signal(number, handler)


def test_later_interrupts_raise_nothing_and_those_after_a_moment_end_the_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seconds = iter([0.0, 0.1, 0.3, 2.0])
    monkeypatch.setattr(cli, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    signal.signal(signal.SIGINT, cli._interrupt)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    for _ in range(2):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
    assert not hurry.is_set()
    signal.raise_signal(signal.SIGINT)
    assert hurry.is_set()
