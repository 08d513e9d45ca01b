"""What a process of the cluster does when it is told to stop."""

import signal
from collections.abc import Iterator

import pytest

from dist_net.cluster.entry import stop_on_signals


@pytest.fixture
def reasons() -> Iterator[list[str]]:
    """What the signals said; this process gets its own handlers back."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    said: list[str] = []
    stop_on_signals(said.append)
    yield said
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_a_second_interrupt_ends_the_process_at_once(reasons: list[str]) -> None:
    signal.raise_signal(signal.SIGINT)
    assert reasons == ["SIGINT received"]
    assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL


def test_sigterm_may_come_twice(reasons: list[str]) -> None:
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)
    assert reasons == ["SIGTERM received"] * 2
