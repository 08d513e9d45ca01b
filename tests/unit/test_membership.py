"""Workers come and go; one that is silent, or brings nothing, is overdue."""

from dist_net.parameter_server.membership import Membership


def a_membership() -> Membership:
    return Membership(heartbeat_timeout_s=1.5, progress_timeout_s=60.0)


def test_an_id_is_never_given_twice() -> None:
    members = a_membership()
    first = members.join(b"a", "one", 0.0)
    members.remove(first.worker_id)
    assert members.join(b"a", "one", 0.0).worker_id != first.worker_id
    assert len(members) == 1


def test_a_silent_worker_is_overdue_and_a_heard_one_is_not() -> None:
    members = a_membership()
    silent, heard = members.join(b"a", "silent", 0.0), members.join(b"b", "heard", 0.0)
    assert members.alive(heard.worker_id, 1.0) is heard
    assert members.expired(1.5) == []
    assert members.expired(1.6) == [silent]


def test_a_worker_that_only_sends_heartbeats_is_overdue_in_the_end() -> None:
    members = a_membership()
    hanging, working = members.join(b"a", "hanging", 0.0), members.join(b"b", "working", 0.0)
    for second in range(61):
        members.alive(hanging.worker_id, float(second))
        members.working(working.worker_id, b"b", float(second))
    assert members.expired(60.5) == [hanging]


def test_work_is_only_taken_through_the_socket_that_joined() -> None:
    members = a_membership()
    member = members.join(b"a", "one", 0.0)
    assert members.working(member.worker_id, b"b", 1.0) is None
    assert members.working(member.worker_id, b"a", 1.0) is member
    assert members.at_node(b"a") is member
    assert members.at_node(b"b") is None


def test_a_worker_reports_its_rate_since_it_joined() -> None:
    member = a_membership().join(b"a", "one", 10.0)
    assert member.report(10.0)["samples_per_s"] == 0.0
    member.samples, member.pushes = 300, 3
    assert member.report(13.0) == {
        "id": 1,
        "name": "one",
        "pushes": 3,
        "samples_per_s": 100.0,
        "heard_s_ago": 3.0,
    }
