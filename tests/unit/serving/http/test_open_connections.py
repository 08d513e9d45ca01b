"""Whose connections are open, and how long each waits for its client, on a clock of the test."""

import pytest

from dist_net.serving.http.http_connection import OpenConnections

RATE = 10  # bytes/s


def waited_s(pieces: list[int], seconds: float) -> float:
    """The longest wait for a client that transfers these pieces, one every so many seconds."""
    connections, longest_s = OpenConnections[str](RATE), 0.0
    connections.assign("a", "client")
    connections.begin_wait("a", 0.0)
    for number, piece in enumerate(pieces, 1):
        longest_s = max(longest_s, connections.waited_s("a", number * seconds))
        connections.transferred("a", piece, number * seconds)
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
    connections = OpenConnections[str](RATE)
    for now, name in enumerate(("sends", "reads slowly", "silent", "new")):
        connections.assign(name, "client")
        connections.begin_wait(name, now)
    connections.transferred("sends", 1000, 10.0)
    connections.transferred("reads slowly", 50, 10.0)
    assert connections.giving_way() == ("silent", "client")
    connections.end_wait("silent")
    assert connections.giving_way() == ("new", "client")
    connections.end_wait("new")
    assert connections.giving_way() == ("reads slowly", "client")


def test_a_wait_lasts_until_the_server_is_at_work() -> None:
    connections = OpenConnections[str](RATE)
    connections.assign("a", "client")
    connections.begin_wait("a", 1.0)
    connections.begin_wait("a", 5.0)
    assert connections.waited_s("a", 6.0) == 5.0
    connections.end_wait("a")
    connections.transferred("a", 1, 7.0)
    assert connections.waited_s("a", 8.0) == 0.0
    connections.begin_wait("a", 9.0)
    assert connections.waited_s("a", 10.0) == 1.0


def test_a_connection_of_the_client_with_most_gives_way_even_at_work() -> None:
    connections = OpenConnections[int](RATE)
    for number in range(5):
        connections.assign(number, "greedy" if number else "modest")
    connections.begin_wait(0, 0.0)
    assert connections.giving_way() == (4, "greedy")
    connections.begin_wait(2, 1.0)
    assert connections.giving_way() == (2, "greedy")
    for number in (2, 3, 4):
        connections.assign(number, "other")
    assert connections.giving_way() == (2, "other")
    connections.close(2)
    connections.close(3)
    connections.close(1)
    assert connections.giving_way() == (0, "modest")
    assert connections.all() == [0, 4]
