"""How long clients keep their connections waiting, on a clock of the test."""

import pytest

from dist_net.serving.http.waiting_clients import WaitingClients

RATE = 10  # bytes/s


def waited_s(pieces: list[int], seconds: float) -> float:
    """The longest wait for a client that transfers these pieces, one every so many seconds."""
    waiting, longest_s = WaitingClients(RATE), 0.0
    waiting.begin("a", 0.0)
    for number, piece in enumerate(pieces, 1):
        longest_s = max(longest_s, waiting.waited_s("a", number * seconds))
        waiting.transferred("a", piece, number * seconds)
    return longest_s


@pytest.mark.parametrize(
    ("pieces", "seconds", "longest_s"),
    [
        ([100] * 50, 9.0, 9.0),  # 11 bytes/s, for 450 s
        ([100] * 50, 11.0, 11.0 + 49),  # 9 bytes/s: a second more after each piece
        ([1] * 5000, 0.1, 0.1),
        ([1] * 5000, 0.2, 0.2 + 4999 * 0.1),
        ([5000, 0], 9.0, 9.0),  # however quickly the rest came
        ([5000, 0, 0, 0], 9.0, 27.0),
    ],
)
def test_a_client_that_keeps_the_rate_is_not_waited_for(
    pieces: list[int], seconds: float, longest_s: float
) -> None:
    assert waited_s(pieces, seconds) == pytest.approx(longest_s)


def test_the_slowest_client_has_waited_longest_not_the_first() -> None:
    waiting = WaitingClients(RATE)
    for now, name in enumerate(("sends", "reads slowly", "silent", "new")):
        waiting.begin(name, now)
    waiting.transferred("sends", 1000, 10.0)
    waiting.transferred("reads slowly", 50, 10.0)
    assert waiting.longest() == "silent"
    waiting.end("silent")
    assert waiting.longest() == "new"
    waiting.end("new")
    assert waiting.longest() == "reads slowly"


def test_a_wait_lasts_until_the_server_is_at_work() -> None:
    waiting = WaitingClients(RATE)
    waiting.begin("a", 1.0)
    waiting.begin("a", 5.0)
    assert waiting.waited_s("a", 6.0) == 5.0
    waiting.end("a")
    waiting.transferred("a", 1, 7.0)
    assert waiting.waited_s("a", 8.0) == 0.0
    waiting.begin("a", 9.0)
    assert waiting.waited_s("a", 10.0) == 1.0
