"""Workers come and go; one that is silent is overdue."""

import pytest

from dist_net.training.server.members import RETURN_S, Member, Membership
from dist_net.training.server.round_plan import LeaseTimes
from dist_net.wire.lease_steps import LeaseSteps
from dist_net.wire.messages import Equipment, Join

STEPS = LeaseSteps(0, 0, 20, 0, 4, 4)


def a_membership() -> Membership:
    return Membership(heartbeat_timeout_s=1.5)


def joined(members: Membership, name: str, identity: int) -> Member:
    return members.join(b"node of %d" % identity, Join(name, identity, "", 3), 0.0)


def test_who_joins_under_a_name_of_another_process_was_started_again() -> None:
    members = a_membership()
    starts = [
        member.starts
        for identity in (1, 1, 2, 3)  # the second time it was only silent
        for member in [joined(members, "one", identity)]
    ]
    assert starts == [1, 1, 2, 3]
    assert joined(members, "two", 4).starts == 1


def test_an_id_is_never_given_twice() -> None:
    members = a_membership()
    first = joined(members, "one", 1)
    members.remove(first.worker_id)
    assert joined(members, "one", 1).worker_id != first.worker_id
    assert len(members) == 1


def test_a_silent_worker_is_overdue_and_a_heard_one_is_not() -> None:
    members = a_membership()
    silent, heard = joined(members, "silent", 1), joined(members, "heard", 2)
    assert members.heard(heard.worker_id, 2, 1.0) is heard
    assert members.overdue(1.5) == []
    assert members.overdue(1.6) == [silent]


def test_a_silent_worker_is_a_member_again_when_it_is_heard() -> None:
    members = a_membership()
    one = joined(members, "one", 1)
    assert members.overdue(1.6) == [one]
    members.silent.add(one.worker_id)
    assert (len(members), members.members, members.parts) == (0, (), 0)
    assert members.overdue(2.0) == []
    assert members.heard(one.worker_id, 2, 2.5) is None
    assert members.heard(one.worker_id, 1, 2.5) is one
    assert (len(members), members.members) == (1, (one,))
    overdue_s = next(n / 10 for n in range(25, 200) if members.overdue(n / 10))
    assert overdue_s == pytest.approx(2.5 + 3 * 2.5, abs=0.2)  # its gradients take so long


def test_a_worker_that_stays_silent_is_forgotten() -> None:
    members = a_membership()
    one = joined(members, "one", 1)
    members.silent.add(one.worker_id)
    overdue_s = next(n / 10 for n in range(1000) if members.overdue(n / 10))
    assert overdue_s == pytest.approx(RETURN_S, abs=0.2)
    members.remove(one.worker_id)
    assert members.overdue(RETURN_S + 1) == []


def test_a_worker_may_compute_for_as_long_as_it_likes_while_its_heart_beats() -> None:
    members = a_membership()
    computing = joined(members, "computing", 1)
    for second in range(3600):
        assert members.heard(computing.worker_id, 1, float(second)) is computing
        assert members.overdue(float(second)) == []
    assert computing.report(3600.0)["progress_s_ago"] == 3600.0


def test_time_in_which_the_server_stood_still_is_no_silence_of_its_workers() -> None:
    members = a_membership()
    member = joined(members, "one", 1)
    assert members.overdue(0.1) == []
    assert members.overdue(60.0) == []
    # A moment later its heartbeats have arrived, unless it is gone.
    assert members.overdue(60.5) == []
    assert members.overdue(61.0) == [member]


def test_a_server_that_is_slow_at_every_look_counts_out_who_is_silent_all_the_same() -> None:
    members = a_membership()
    member = joined(members, "one", 1)
    looks = [members.overdue(5.0 * look) for look in range(6)]
    assert looks == [[], [], [], [], [member], [member]]


def test_a_worker_is_known_by_its_id_and_identity_together() -> None:
    members = a_membership()
    one, two = joined(members, "one", 1), joined(members, "two", 2)
    assert members.heard(one.worker_id, 2, 1.0) is None
    assert members.heard(one.worker_id, 1, 1.0) is one
    assert members.former(b"node of 2", 1) == [one, two]
    assert members.former(b"c", 3) == []


def test_a_worker_reports_what_it_has_and_how_it_does() -> None:
    equipment = Equipment("here", 8, 4, 1.5, 2, "openblas 0.3")
    member = a_membership().join(b"a", Join("one", 1, "", 3, equipment=equipment), 10.0)
    assert member.report(10.0)["samples_per_s"] == 0.0
    member.pushes, member.staleness_sum = 3, 6
    member.lease_times = LeaseTimes(0.002, 0.1)
    member.speed.has_work(10.0)
    member.speed.computed(0, 13.0)
    assert member.report(13.0) == {
        "id": member.worker_id,
        "name": "one",
        "starts": 1,
        "host": "here",
        "host_cores": 8,
        "cores": 4,
        "core_quota": 1.5,
        "threads": 2,
        "blas": "openblas 0.3",
        "kernels": 0,
        "processes": 1,
        "pushes": 3,
        "samples_per_s": 0.0,
        "staleness_mean": 2.0,
        "round_trip_s": 0.002,
        "exchanged_bytes": 0,
        "heard_s_ago": 3.0,
        "lease_s": None,
        "progress_s_ago": 3.0,
    }


def test_time_in_which_the_server_stood_still_is_no_part_of_a_lease() -> None:
    members = a_membership()
    member = joined(members, "one", 1)
    member.began_s = 0.0
    members.overdue(0.1)
    members.overdue(60.1)
    member.has_computed(STEPS, computed_s=0.5, now=60.6)
    assert member.lease_times == pytest.approx((0.6, 0.1, 1, 5))


def test_the_times_of_leases_are_averaged_and_a_first_one_counts_at_once() -> None:
    member = joined(a_membership(), "one", 1)
    member.has_computed(STEPS, 0.5, 1.0)
    assert member.lease_times == LeaseTimes()  # its beginning is unknown
    member.began_s = 0.0
    member.has_computed(STEPS, 0.5, 1.0)
    assert member.lease_times == pytest.approx((0.5, 0.1, 1, 5))
    member.has_computed(STEPS._replace(stop=18), 0.9, 1.0)  # the last minibatch was smaller
    assert member.lease_times == pytest.approx((0.4, 0.12, 1, 5))


def test_a_worker_whose_share_of_the_minibatches_changes_is_measured_anew() -> None:
    member = joined(a_membership(), "one", 1)
    member.began_s = 0.0
    member.has_computed(LeaseSteps(0, 0, 32, 0, 32, 32), 0.8, 1.0)
    member.has_computed(LeaseSteps(0, 0, 32, 0, 32, 16), 0.8, 1.0)
    assert member.lease_times == pytest.approx((0.2, 0.4, 1, 2))


def test_a_worker_counts_as_many_times_as_it_has_parts() -> None:
    members = a_membership()
    joined(members, "one", 1).parts = 4
    joined(members, "two", 2)
    assert (len(members), members.parts) == (2, 5)
