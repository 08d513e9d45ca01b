"""What a report tells of the leases of the last seconds."""

from dist_net.training.server.recent_leases import PIECES_KEPT, RecentLeases


def test_short_leases_of_a_worker_are_one_piece() -> None:
    leases = RecentLeases()
    leases.ended(1, ("a", "worker-0"), 10.0, 0.03, 10.04)
    leases.ended(2, ("b", "worker-0"), 10.0, 0.25, 10.3)
    leases.ended(1, ("a", "worker-0"), 10.06, 0.03, 10.12)
    assert leases.report(11.0) == [
        [0, "b", "worker-0", 1.0, 0.7, 0.25, 0.05],
        [1, "a", "worker-0", 1.0, 0.88, 0.06, 0.04],
    ]


def test_a_worker_cannot_have_computed_for_longer_than_its_lease() -> None:
    leases = RecentLeases()
    leases.ended(1, ("a", "w"), 10.0, 1e9, 10.5)
    assert leases.report(10.5) == [[0, "a", "w", 0.5, 0.0, 0.5, 0.0]]


def test_only_the_newest_pieces_are_kept_and_none_of_a_lost_worker_grows_on() -> None:
    leases = RecentLeases()
    leases.ended(1, ("a", "w"), 0.0, 0.01, 0.05)
    leases.forget(1)
    for number in range(PIECES_KEPT + 3):
        leases.ended(1, ("a", "w"), number + 1.0, 0.2, number + 1.5)
    report = leases.report(0.0)
    assert (len(report), report[0][0], report[-1][0]) == (PIECES_KEPT, 3, PIECES_KEPT + 2)
