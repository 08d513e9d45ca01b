"""Workers come and go; one that is silent is overdue."""

from dist_net.parameter_server.members import Membership


def a_membership() -> Membership:
    return Membership(heartbeat_timeout_s=1.5)


def test_an_id_is_never_given_twice() -> None:
    members = a_membership()
    first = members.join(b"a", "one", 1, 0.0)
    members.remove(first.worker_id)
    assert members.join(b"a", "one", 1, 0.0).worker_id != first.worker_id
    assert len(members) == 1


def test_a_silent_worker_is_overdue_and_a_heard_one_is_not() -> None:
    members = a_membership()
    silent, heard = members.join(b"a", "silent", 1, 0.0), members.join(b"b", "heard", 2, 0.0)
    assert members.alive(heard.worker_id, 1.0) is heard
    assert members.expired(1.5) == []
    assert members.expired(1.6) == [silent]


def test_a_worker_may_compute_for_as_long_as_it_likes_while_its_heart_beats() -> None:
    members = a_membership()
    computing = members.join(b"a", "computing", 1, 0.0)
    for second in range(3600):
        assert members.alive(computing.worker_id, float(second)) is computing
        assert members.expired(float(second)) == []
    assert computing.report(3600.0)["progress_s_ago"] == 3600.0


def test_time_in_which_the_server_stood_still_is_no_silence_of_its_workers() -> None:
    members = a_membership()
    member = members.join(b"a", "one", 1, 0.0)
    assert members.expired(0.1) == []
    assert members.expired(60.0) == []
    # A moment later its heartbeats have arrived, unless it is gone.
    assert members.expired(60.5) == []
    assert members.expired(61.0) == [member]


def test_a_server_that_is_slow_at_every_look_counts_out_who_is_silent_all_the_same() -> None:
    members = a_membership()
    member = members.join(b"a", "one", 1, 0.0)
    looks = [members.expired(5.0 * look) for look in range(6)]
    assert looks == [[], [], [], [], [member], [member]]


def test_work_is_only_taken_through_the_socket_that_joined() -> None:
    members = a_membership()
    member = members.join(b"a", "one", 1, 0.0)
    assert members.working(member.worker_id, b"b", 1.0) is None
    assert members.working(member.worker_id, b"a", 1.0) is member
    assert members.at_node(b"a") is member
    assert members.at_node(b"b") is None


def test_a_worker_reports_its_rate_since_it_joined() -> None:
    member = a_membership().join(b"a", "one", 1, 10.0)
    assert member.report(10.0)["samples_per_s"] == 0.0
    member.samples, member.pushes = 300, 3
    assert member.report(13.0) == {
        "id": member.worker_id,
        "name": "one",
        "pushes": 3,
        "samples_per_s": 100.0,
        "heard_s_ago": 3.0,
        "progress_s_ago": 3.0,
    }
