"""Majorities of hosts, promises, and who begins the next term."""

import json
import math
from itertools import combinations
from unittest.mock import Mock

import numpy as np
import pytest

from desk import SETTINGS, SIZE, Desk, a_run
from dist_net.checkpoint import read_checkpoint
from dist_net.errors import ProtocolError, ServerLostError, SupersededError
from dist_net.training.server.copy_pace import PROGRESS_S
from dist_net.training.server.journal import read_journal
from dist_net.training.server.loop import new_run, opened_journal
from dist_net.training.server.members import Promise
from dist_net.training.server.ownership import next_term
from dist_net.training.server.protocol import ParameterServer, SendCopy, ServerCommand
from dist_net.training.server.standby_copy import RunCopy, SentState
from dist_net.training.server.standby_loop import StandbyLoop
from dist_net.training.server.standbys import Remembered, is_majority
from dist_net.training.server.succession import Succession
from dist_net.wire.messages import Alive, Equipment, Follow, Followed, Join, Shutdown, Stop, Work
from dist_net.wire.standbys import MAX_STANDBYS, ServerRoute, Standby, standbys_in, standbys_text

HOSTS = "server", "standby", "third", "fourth", "fifth"
FOLLOW = Follow("standby", "tcp://10.0.0.2:5", 7, 0, 0, 0, 0, 0, 0, 0, 0.0, 0.0)
KEY = 40 * "k"
SERVER = Standby("tcp://10.0.0.1:5", KEY)


@pytest.mark.parametrize("size", range(1, 6))
def test_of_two_parts_of_the_hosts_exactly_one_has_the_majority(size: int) -> None:
    hosts = HOSTS[:size]
    for count in range(size + 1):
        for one in combinations(hosts, count):
            other = [each for each in hosts if each not in one]
            for first in hosts:
                assert is_majority(hosts, one, first) != is_majority(hosts, other, first)


def test_a_promise_counts_from_before_the_peer_sent_what_was_answered() -> None:
    promise = Promise()
    promise.renew(sent_s=100.0, heard_s=0.0, now=1.0)
    promise.renew(sent_s=101.0, heard_s=100.0, now=2.0)
    assert not promise.holds(4.5, 2.0)  # when did it send the first message?
    promise.renew(sent_s=102.0, heard_s=101.0, now=4.0)
    assert promise.holds(4.5, 1.0 + 4.0)  # it sent the second after the answer to the first
    assert not promise.holds(4.5, 1.0 + 4.1)  # less than 4.5 s: clocks differ in speed
    promise.renew(sent_s=103.0, heard_s=101.0, now=9.0)  # late: it says nothing new
    assert not promise.holds(4.5, 9.0)


def test_a_promise_of_a_worker_begins_with_its_join() -> None:
    promise = Promise(joined_s=1.0)
    assert not promise.holds(4.5, 1.0)  # it may have gone on to another server
    promise.renew(sent_s=100.0, heard_s=99.9, now=2.0)
    assert promise.holds(4.5, 1.0 + 4.0)
    assert not promise.holds(4.5, 1.0 + 4.1)


def test_a_clock_that_is_slow_breaks_no_promise() -> None:
    promise, heard_s = Promise(), 0.0
    for second in range(1, 10_000):
        promise.renew(sent_s=0.95 * second, heard_s=heard_s, now=second)
        heard_s = 0.95 * second
    assert promise.holds(4.5, 10_000)
    assert len(promise.received) < 5


def following(desk: Desk, **changes: object) -> list[ServerCommand]:
    return desk.server.handle(b"standby", FOLLOW._replace(**changes), desk.now)


def followed_by_a_standby(desk: Desk) -> None:
    """Let a standby send requests until it has heard the answers to two."""
    times = desk.now, desk.now + 0.1, desk.now + 0.2
    for sent_s, heard_s in zip(times, (0.0, *times), strict=False):
        assert following(desk, sent_s=sent_s, heard_s=heard_s)


def test_a_server_without_a_majority_grants_nothing_and_takes_nothing_in() -> None:
    desk = Desk()
    desk.server = ParameterServer(desk.run, 7, host="server")
    desk.join(b"a", equipment=Equipment("server"))
    followed_by_a_standby(desk)
    push = desk.a_push(desk.pull(b"a", 1))
    desk.now += 10.0  # the standby's host is silent, and so are half of the hosts
    desk.beat(1, desk.now)
    assert "standby" in desk.report()["majority_warning"]
    assert desk.has_to_wait(b"a", push)
    assert desk.run.store.version == 0
    followed_by_a_standby(desk)
    assert desk.report()["majority_warning"] is None
    assert isinstance(desk.ask(b"a", push), Work)
    assert desk.run.store.version == 1


def test_a_server_ends_when_a_standby_is_in_a_later_term() -> None:
    desk = Desk()
    with pytest.raises(SupersededError, match=r"10\.0\.0\.2:5"):
        following(desk, term=8, serves=True)


@pytest.mark.parametrize("why", ["its key was revoked", "it knows that the run is over"])
def test_a_standby_that_cannot_take_over_is_not_waited_for(why: str) -> None:
    desk = Desk()
    desk.server = ParameterServer(desk.run, 7, host="server")
    following(desk, sent_s=desk.now, heard_s=desk.now, public_key=KEY)
    standbys = desk.server.standbys
    assert [each[1] for each in standbys.remembered.standbys] == [KEY]
    if "key" in why:
        standbys.keep(lambda key: key != KEY)
    else:
        desk.server.stop("interrupted")
        following(desk, public_key=KEY)
    assert standbys.remembered == Remembered()
    assert standbys.hold(desk.now + 10.0)


def test_a_standby_without_an_address_copies_and_begins_no_term() -> None:
    desk = Desk()
    desk.server = ParameterServer(desk.run, 7, host="server")
    (copied,) = following(desk, sent_s=desk.now, heard_s=desk.now, address="", public_key=KEY)
    assert isinstance(copied, SendCopy)
    standbys = desk.server.standbys
    assert standbys.text == ""
    assert standbys.remembered.standbys == ()
    assert standbys.hold(desk.now + 10.0)  # although half of the hosts are silent
    assert [each["host"] for each in desk.report()["standbys"]] == [FOLLOW.host]
    for address in (FOLLOW.address, ""):
        copy = Succession("standby", address, 5.0, 0.0)
        others = json.dumps([["standby"], []])
        copy.hears(Followed(7, 0.0, 3, "server", others, "", 0, 0, 0, 1.0, ()), SERVER, 0.0)
        copy.visits("server", 4.0)
        assert due(copy, 6.0) == bool(address)


def test_everyone_stays_until_a_finished_run_is_evaluated_and_copied() -> None:
    desk = Desk(a_run(samples=8, epochs=1))
    desk.server = ParameterServer(desk.run, 7, host="server")
    desk.join(b"a", equipment=Equipment("third"))
    followed_by_a_standby(desk)
    desk.beat(1, desk.now)
    desk.beat(1, desk.now)
    desk.has_to_wait(b"a", desk.a_push(desk.pull(b"a", 1)))
    assert desk.report()["state"] == "finished"
    assert isinstance(desk.beat(1), Alive)
    last = {"copied_term": 7, "version": desk.run.store.version}
    assert isinstance(following(desk, **last)[0], SendCopy)  # it may have to evaluate the run
    desk.server.handle(b"display", Shutdown("every epoch is done"), desk.now)
    assert isinstance(desk.beat(1), Stop)
    assert isinstance(following(desk)[0], SendCopy)
    assert following(desk, **last)[0].message == Stop("every epoch is done", finished=True)


@pytest.mark.parametrize("how", ["it is hung", "it restarts its copy", "it hardly gets on"])
def test_a_run_ends_without_a_standby_that_does_not_get_on(how: str) -> None:
    desk = Desk(a_run(samples=8, epochs=1))
    desk.server = ParameterServer(desk.run, 7, host="server")
    desk.join(b"a", equipment=Equipment("third"))
    followed_by_a_standby(desk)
    desk.beat(1, desk.now)
    desk.beat(1, desk.now)
    desk.has_to_wait(b"a", desk.a_push(desk.pull(b"a", 1)))
    assert desk.report()["state"] == "finished"
    desk.server.handle(b"display", Shutdown("every epoch is done"), desk.now)
    desk.server.ended_s = desk.now
    state = SentState(desk.run, 0, {})
    desk.server.standbys.follower(FOLLOW).copy.sends(state, desk.now)
    lacks = {"state_version": state.version}
    for share in (0.3, 0.6, 0.9):  # as long as it gets on, however slowly
        desk.now += 0.9 * PROGRESS_S
        following(desk, state_bytes=int(share * state.size), **lacks)
        assert desk.server.awaited(desk.now)
    began_s = desk.now
    while desk.server.awaited(desk.now) and desk.now < began_s + 100.0:
        desk.now += 0.5
        hardly = int((0.9 + 0.0001 * (desk.now - began_s)) * state.size)
        arrived = {"it is hung": None, "it restarts its copy": 0, "it hardly gets on": hardly}[how]
        if arrived is not None:
            answer = following(desk, state_bytes=arrived, **lacks)
    assert desk.now <= began_s + PROGRESS_S + 1.0
    if how != "it is hung":
        assert not answer[0].message.finished
        assert f"{state.version}" in answer[0].message.reason


def test_terms_grow_and_are_of_one_server() -> None:
    terms = [0]
    for _ in range(20):
        terms.append(next_term(terms[-1]))
    assert terms == sorted(set(terms))
    assert next_term(0) != next_term(0)
    assert next_term(0, takes_over=True) > terms[-1]


def succession(**hosts: object) -> Succession:
    made = Succession("standby", FOLLOW.address, 5.0, 0.0)
    others = json.dumps([["standby", "third"], [[FOLLOW.address, "", "standby"], *hosts.values()]])
    made.hears(Followed(7, 0.0, 3, "server", others, "", 0, 0, 0, 1.0, ()), SERVER, 0.0)
    return made


def due(of: Succession, now: float, version: int = 3) -> bool:
    """Whether it is due at ``now``, having looked all the time."""
    for tenth in range(math.ceil(10 * now)):
        of.is_due(7, version, tenth / 10)
    return of.is_due(7, version, now)


def test_a_standby_begins_once_it_and_a_majority_have_not_heard_the_server() -> None:
    alone = succession()
    assert not due(alone, 60.0)  # one of three hosts
    visited = succession()
    visited.visits("third", 4.0)
    assert not due(visited, 4.9)
    assert due(visited, 5.0)
    assert not due(succession(), 4.9)
    answer = Followed(7, 5.0, 3, "server", '[["standby"], []]', "", 0, 0, 0, 1.0, ())
    visited.hears(answer, SERVER, 5.1)
    assert not due(visited, 9.9)


def test_visits_before_the_server_was_heard_do_not_count() -> None:
    visited = succession()
    visited.visits("third", 4.0)
    answer = Followed(7, 4.5, 3, "server", '[["standby", "third"], []]', "", 0, 0, 0, 1.0, ())
    visited.hears(answer, SERVER, 4.6)
    assert not due(visited, 10.0)
    visited.visits("third", 10.0)
    assert due(visited, 10.1)


def test_a_standby_that_has_just_heard_the_server_does_not_count() -> None:
    for heard_s, is_due in ((95.1, False), (95.0, True)):
        one = succession()
        rival = FOLLOW._replace(host="third", address="tcp://10.0.0.3:5", sent_s=100.0)
        one.follows(rival._replace(heard_s=heard_s), 4.5)
        assert due(one, 5.0) == is_due


def test_a_successor_applies_nothing_before_a_majority_has_joined_it() -> None:
    desk = Desk()
    others = Remembered(("server", "third"), ())
    desk.server = ParameterServer(desk.run, 8, host="standby", remembered=others)
    assert not desk.server.standbys.hold(desk.now)
    desk.join(b"a", equipment=Equipment("third"))
    assert not desk.server.standbys.hold(desk.now)
    desk.beat(1, desk.now)
    assert desk.server.standbys.hold(desk.now)
    assert desk.server.standbys.hold(desk.now + 60.0)  # nobody can take over from it


def test_time_in_which_a_standby_was_stopped_does_not_count() -> None:
    stopped = succession()
    stopped.visits("third", 100.0)
    stopped.is_due(7, 3, 0.1)
    assert not stopped.is_due(7, 3, 100.0)


def test_a_restarted_standby_knows_the_hosts_and_waits_as_if_it_had_just_heard_the_server() -> None:
    others = succession().others
    assert others.former == (tuple(SERVER),)
    again = Succession("standby", FOLLOW.address, 5.0, 60.0)
    again.others = others
    again.visits("third", 61.0)
    for tenth in range(600, 650):
        assert not again.is_due(7, 3, tenth / 10)
    assert again.is_due(7, 3, 65.0)


@pytest.mark.parametrize("has_copy", [False, True])
def test_a_restarted_standby_follows_a_former_server_and_has_the_term_of_its_copy(
    tmp_path, has_copy: bool
) -> None:
    sent: list[tuple[str, Follow]] = []
    clock = Mock()
    clock.now.return_value = 0.0

    def connect(place: Standby) -> Mock:
        silent = Mock(**{"receive.return_value": None})
        silent.send.side_effect = lambda follow: sent.append((place.address, follow))
        return silent

    if has_copy:
        (tmp_path / "copy").touch()
    copy = RunCopy(SETTINGS, tmp_path / "copy", tmp_path / "journal")
    successor = "tcp://10.0.0.3:5"
    known = Remembered(("server", "third"), former=((successor, ""),), term=9, version=4)
    who = "standby", FOLLOW.address, 5.0
    loop = StandbyLoop(connect, SERVER, Mock(), copy, *who, Mock(), others=known, clock=clock)
    turns = loop.turns(Mock())
    for tenth in range(40):
        clock.now.return_value = tenth / 10
        next(turns)
    assert {address for address, _ in sent} >= {SERVER.address, successor}
    has = {(each.term, each.copied_term, each.version) for _, each in sent}
    assert has == {(9, 9, 4) if has_copy else (0, 0, 0)}


@pytest.mark.parametrize("what", ["nothing", "a copy, and no majority", "the last version"])
def test_a_standby_ends_after_a_long_silence(tmp_path, what: str) -> None:
    clock, upstream = Mock(), Mock(**{"receive.return_value": None})
    if what != "nothing":
        (tmp_path / "copy").touch()
    copy = RunCopy(SETTINGS, tmp_path / "copy", tmp_path / "journal")
    copy.samples = SETTINGS.samples_total if what == "the last version" else 0
    clock.now.return_value = 0.0
    known = Remembered(("server", "third"), term=9, version=4)
    who = "standby", FOLLOW.address, 5.0
    given = {"others": known, "rejoin_timeout_s": 60.0, "clock": clock}
    turns = StandbyLoop(lambda _: upstream, SERVER, Mock(), copy, *who, Mock(), **given).turns(
        Mock()
    )
    for tenth in range(601):
        clock.now.return_value = tenth / 10
        next(turns)
    clock.now.return_value = 60.1
    with pytest.raises(StopIteration if what == "the last version" else ServerLostError):
        next(turns)


def test_a_standby_outlasts_an_answer_that_no_server_of_the_run_sends(tmp_path) -> None:
    parts = b"", b"", b""
    clock, answers = Mock(), [Followed(7, 0.0, 0, "server", "{", "", 0, 0, 0, 1.0, parts)]
    clock.now.return_value = 0.0
    upstream = Mock(**{"receive.side_effect": lambda _: answers.pop() if answers else None})
    copy = RunCopy(SETTINGS, tmp_path / "copy", tmp_path / "journal")
    who = "standby", FOLLOW.address, 5.0
    turns = StandbyLoop(lambda _: upstream, SERVER, Mock(), copy, *who, Mock(), clock=clock).turns(
        Mock()
    )
    for _ in range(3):
        next(turns)
    assert not answers


def test_the_newest_state_begins_and_then_the_first_in_the_list() -> None:
    second = ["tcp://10.0.0.3:5", "", "third"]
    rival = FOLLOW._replace(host="third", address=second[0], sent_s=9.0)
    for version, is_due in ((2, True), (3, True), (4, False)):
        one = succession(second=second)
        one.follows(rival._replace(copied_term=7, version=version), 4.5)
        assert due(one, 5.0) == is_due


def test_a_route_turns_from_place_to_place_and_leaves_out_the_own_one() -> None:
    one, other = Standby("tcp://10.0.0.2:5", KEY), Standby("tcp://[fe80::1]:6")
    text = standbys_text([one, other])
    assert standbys_in(text) == [one, other]
    assert standbys_in("tcp://x:5 short ftp://x - tcp://x:5") == []
    route = ServerRoute(other.address)
    assert not route.turn()
    route.learn(text)
    assert [route.turn() and route.current for _ in range(3)] == [one, None, one]


@pytest.mark.parametrize("has_momentum", [False, True])
def test_a_copy_in_parts_is_a_directory_that_can_be_resumed(tmp_path, has_momentum: bool) -> None:
    run = new_run(SETTINGS, lambda: np.arange(SIZE, dtype=np.float32), None)
    if has_momentum:
        run.store.outer_momentum = np.arange(SIZE, 2 * SIZE, dtype=np.float32)
    with opened_journal(tmp_path / "journal", run, term=7):
        content = (tmp_path / "journal").read_bytes()
        sent = SentState(run, len(content), {"options": "{}"})
        copy = RunCopy(SETTINGS, tmp_path / "copy", tmp_path / "copied-journal")
        assert copy.take_in(answer(facts=sent.facts, part=sent.part(0, 5)))
        assert not copy.take_in(answer(facts=sent.facts, part=sent.part(0, 5)))  # repeated
        assert not copy.take_in(answer(at=9, part=sent.part(9, 5)))  # one before it was lost
        while copy.left_bytes:
            at = copy.state_bytes
            assert copy.take_in(answer(at=at, part=sent.part(at, 5)))
        assert not copy.is_complete
        copy.take_in(answer(journal=content))
        assert copy.is_complete
        write = copy.to_write()
        assert not copy.take_in(answer(term=8, facts=sent.facts))  # not before it is written
        facts = write()
        copy.written(facts)
        assert (copy.copied_term, copy.version, facts["options"]) == (7, 0, "{}")
        assert copy.take_in(answer(facts=sent.facts))  # it has that version: the facts are enough
        assert copy.is_complete
    resumed = new_run(SETTINGS, list, read_checkpoint(tmp_path / "copy"))
    np.testing.assert_array_equal(resumed.store.state, run.store.state)
    np.testing.assert_array_equal(resumed.store.outer_momentum, run.store.outer_momentum)
    assert read_journal(tmp_path / "copied-journal").version == 0


def answer(
    *, term: int = 7, facts: bytes = b"", journal: bytes = b"", at: int = 0, part: object = b""
) -> Followed:
    """A server's answer to a standby, with a part of the state of version 0."""
    run = term, 0.0, 0, "server", "[]", ""
    return Followed(*run, 0, 0, at, 1.0, (journal, facts, part))


def test_a_journal_without_end_is_written_beside_the_copy_at_once(tmp_path) -> None:
    journal = tmp_path / "journal"
    journal.write_bytes(b"of the term before")
    copy = RunCopy(SETTINGS, tmp_path / "copy", journal)
    for at in range(0, 5000, 1000):
        parts = bytes(1000), b"", b""
        copy.take_in(Followed(7, 0.0, 0, "server", "[]", "", at, 0, 0, 1.0, parts))
    assert (tmp_path / "journal.collected").stat().st_size == copy.journal_bytes == 5000
    assert journal.read_bytes() == b"of the term before"


def test_a_copy_of_another_run_is_refused(tmp_path) -> None:
    copy = RunCopy(SETTINGS, tmp_path / "copy", tmp_path / "journal")
    facts = SentState(new_run(SETTINGS, lambda: np.zeros(SIZE, np.float32), None), 1, {}).facts
    huge = json.dumps(json.loads(facts) | {"state_bytes": 1 << 40}).encode()
    for wrong in (b"{", b"[]", b'{"version": "1"}', huge):
        with pytest.raises(ProtocolError):
            copy.take_in(answer(facts=wrong))
    with pytest.raises(ProtocolError):
        copy.take_in(answer()._replace(parts=()))
    with pytest.raises(ProtocolError):
        copy.take_in(answer(facts=facts, part=bytes(4 * 10 * SIZE)))
    for text in ("{", "3", '["x", 1]', '[["x"], [["a"]]]'):
        with pytest.raises(ProtocolError):
            Remembered.from_json(text)
    assert SETTINGS.vector_size == SIZE


def test_one_worker_and_one_standby_count_for_one_host_each_whatever_they_claim() -> None:
    desk = Desk()
    standbys = desk.server.standbys
    for number in range(5):
        join = {"identity": 7, "request_id": number + 1, "equipment": Equipment(f"host-{number}")}
        desk.commands(b"a", Join("a", recipe_digest="abc", vector_size=SIZE, **join))
        following(desk, address=f"tcp://10.0.0.2:{number}", public_key=KEY)
    assert standbys.hosts == ["", "standby", "host-4"]
    assert len(standbys_in(standbys.text)) == 1


def test_visits_of_strangers_are_not_kept() -> None:
    visited = succession()
    for number in range(100):
        visited.visits(f"stranger-{number}", 1.0)
        visited.follows(FOLLOW._replace(address=f"tcp://10.0.1.1:{number}"), 1.0)
    assert not visited._visits_s
    assert len(visited._rivals) <= 2 * MAX_STANDBYS
