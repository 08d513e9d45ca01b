"""Majorities of votes, promises, and who begins the next term."""

import json
import math
from itertools import combinations, product
from unittest.mock import Mock

import numpy as np
import pytest

from desk import SETTINGS, SIZE, Desk, a_run, opened_journal
from dist_net.errors import ProtocolError, ServerLostError, SupersededError
from dist_net.ground.checkpoint import read_checkpoint
from dist_net.training.server.copy_pace import PROGRESS_S
from dist_net.training.server.journal import read_journal
from dist_net.training.server.loop import OtherHosts
from dist_net.training.server.members import NO_WORKER, Promise, VoterId
from dist_net.training.server.protocol import ParameterServer, SendCopy, ServerCommand
from dist_net.training.server.server_files import next_term
from dist_net.training.server.standby_copy import RunCopy, SentState
from dist_net.training.server.standby_loop import StandbyLoop
from dist_net.training.server.standbys import (
    FORGOTTEN_AFTER_S,
    Remembered,
    RunPlace,
    Voter,
    Voters,
    fingerprint,
    is_majority,
)
from dist_net.training.server.state import RunState
from dist_net.training.server.succession import Succession
from dist_net.wire.messages import (
    Alive,
    Equipment,
    Follow,
    Followed,
    ForgetMember,
    Shutdown,
    Stop,
    Work,
)
from dist_net.wire.standbys import (
    KEY_LENGTH,
    MAX_STANDBYS,
    ServerPlaces,
    Standby,
    standbys_in,
    standbys_text,
)


def key_of(name: str) -> str:
    return name.ljust(KEY_LENGTH, ".")


def voter(name: str, votes: int = 5, identity: int = NO_WORKER) -> Voter:
    return Voter(key_of(name), identity, votes, name)


KEY = key_of("standby")
FOLLOW = Follow("standby", "tcp://10.0.0.2:5", 7, 0, 0, 0, 0, 0, 0, 0, 0.0, 0.0, public_key=KEY)
OWN = Standby("tcp://10.0.0.1:5", key_of("server"))
THIRD = voter("third", 1, 3)
VOTERS = voter("standby"), voter("server"), THIRD


def voters_in_json(voters: Voters, *standbys: tuple[str, str, str]) -> str:
    """The voters and standbys as a server sends them."""
    return json.dumps(Remembered((voters,), standbys))


@pytest.mark.parametrize("size", range(1, 6))
def test_of_two_parts_of_the_voters_exactly_one_has_the_majority(size: int) -> None:
    for votes in product((1, 2, 5), repeat=size):
        voters = tuple(voter(str(at), each) for at, each in enumerate(votes))
        ids = [each.voter_id for each in voters]
        for count in range(size + 1):
            for one in combinations(ids, count):
                other = [each for each in ids if each not in one]
                assert is_majority(voters, one) != is_majority(voters, other)


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


def followed_by_a_standby(desk: Desk, **changes: object) -> None:
    """Let a standby send requests until it has heard the answers to three, and has a vote."""
    times = [desk.now + tenth / 10 for tenth in range(4)]
    for sent_s, heard_s in zip(times, (0.0, *times), strict=False):
        lists = desk.server.standbys.remembered.voters
        assert following(
            desk, sent_s=sent_s, heard_s=heard_s, voters=fingerprint(lists[-1]), **changes
        )


def a_desk(**settings: object) -> Desk:
    """A desk whose server has a key."""
    desk = Desk(a_run(**settings))
    desk.server = ParameterServer(desk.run, 7, place=RunPlace("server", OWN))
    return desk


def test_a_server_without_a_majority_grants_nothing_and_takes_nothing_in() -> None:
    desk = a_desk()
    desk.join(b"a", equipment=Equipment("server"))
    followed_by_a_standby(desk)
    push = desk.a_push(desk.pull(b"a", 1))
    desk.now += 10.0  # the standby is silent, which has half of the votes
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
    desk = a_desk()
    followed_by_a_standby(desk)
    standbys = desk.server.standbys
    assert [each[1] for each in standbys.remembered.standbys] == [KEY]
    if "key" in why:
        standbys.keep(lambda key: key != KEY, desk.now)
    else:
        desk.server.stop("interrupted")
        following(desk)
    assert standbys.remembered.standbys == ()
    assert [each.label for each in standbys.remembered.voters[-1]] == ["server"]
    assert standbys.hold(desk.now + 10.0)


def test_a_standby_without_an_address_copies_and_begins_no_term() -> None:
    desk = a_desk()
    (copied,) = following(desk, sent_s=desk.now, heard_s=desk.now, address="")
    assert isinstance(copied, SendCopy)
    standbys = desk.server.standbys
    assert standbys.text == ""
    assert standbys.remembered.standbys == ()
    assert standbys.hold(desk.now + 10.0)  # although it is silent
    assert [each["host"] for each in desk.report()["standbys"]] == [FOLLOW.host]
    for address in (FOLLOW.address, ""):
        copy = Succession(Standby(address, KEY), 5.0, 0.0)
        others = voters_in_json(VOTERS[:2])
        copy.hears(Followed(7, 0.0, 3, "server", others, "", 0, 0, 0, 1.0, ()), OWN, 0.0)
        assert due(copy, 6.0) == bool(address)


def test_everyone_stays_until_a_finished_run_is_evaluated_and_copied() -> None:
    desk = a_desk(samples=8, epochs=1)
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
    desk.server = ParameterServer(desk.run, 7, place=RunPlace("server"))
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


PLACE = Standby(FOLLOW.address, KEY)


def succession(*others: tuple[str, str, str], voters: Voters = VOTERS) -> Succession:
    made = Succession(PLACE, 5.0, 0.0)
    known = voters_in_json(voters, (*PLACE, "standby"), *others)
    made.hears(Followed(7, 0.0, 3, "server", known, "", 0, 0, 0, 1.0, ()), OWN, 0.0)
    return made


def due(of: Succession, now: float, version: int = 3) -> bool:
    """Whether it is due at ``now``, having looked all the time."""
    for tenth in range(math.ceil(10 * now)):
        of.is_due(7, version, tenth / 10)
    return of.is_due(7, version, now)


def test_a_standby_begins_once_it_and_a_majority_have_not_heard_the_server() -> None:
    assert not due(succession(voters=(VOTERS[1], VOTERS[0], THIRD)), 60.0)  # 5 of 11 votes
    visited = succession()
    visited.visits(THIRD.voter_id, 4.0)
    assert not due(visited, 4.9)
    assert due(visited, 5.0)
    answer = Followed(7, 5.0, 3, "server", voters_in_json(VOTERS), "", 0, 0, 0, 1.0, ())
    visited.hears(answer, OWN, 5.1)
    assert not due(visited, 9.9)


def test_visits_before_the_server_was_heard_do_not_count() -> None:
    visited = succession()
    visited.visits(THIRD.voter_id, 4.0)
    answer = Followed(7, 4.5, 3, "server", voters_in_json(VOTERS), "", 0, 0, 0, 1.0, ())
    visited.hears(answer, OWN, 4.6)
    assert not due(visited, 10.0)
    visited.visits(THIRD.voter_id, 10.0)
    assert due(visited, 10.1)


def test_a_standby_that_has_just_heard_the_server_does_not_count() -> None:
    for heard_s, is_due in ((95.1, False), (95.0, True)):
        one = succession(voters=(VOTERS[1], VOTERS[0], voter("other")))
        rival = FOLLOW._replace(
            public_key=key_of("other"), address="tcp://10.0.0.3:5", sent_s=100.0
        )
        one.follows(rival._replace(heard_s=heard_s), 4.5)
        assert due(one, 5.0) == is_due


def test_a_successor_applies_nothing_before_a_majority_has_joined_it() -> None:
    desk = Desk()
    others = Remembered((VOTERS,))
    desk.server = ParameterServer(desk.run, 8, place=RunPlace("standby", PLACE, others))
    assert not desk.server.standbys.hold(desk.now)
    desk.join(b"a", identity=THIRD.identity, public_key=THIRD.public_key)
    assert not desk.server.standbys.hold(desk.now)
    desk.beat(1, desk.now)
    assert desk.server.standbys.hold(desk.now)
    desk.server.tick(desk.now)
    assert desk.server.standbys.hold(desk.now + 60.0)  # nobody can take over from it


def test_time_in_which_a_standby_was_stopped_does_not_count() -> None:
    stopped = succession()
    stopped.visits(THIRD.voter_id, 100.0)
    stopped.is_due(7, 3, 0.1)
    assert not stopped.is_due(7, 3, 100.0)


def test_a_restarted_standby_knows_the_voters_and_waits_as_if_it_had_just_heard_the_server() -> (
    None
):
    others = succession().others
    assert others.former == (tuple(OWN),)
    again = Succession(PLACE, 5.0, 60.0)
    again.others = others
    again.visits(THIRD.voter_id, 61.0)
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
    former = (("ftp://damaged", ""), (successor, ""))
    known = Remembered((VOTERS,), former=former, term=9, version=4)
    hosts = OtherHosts(RunPlace("standby", PLACE, known), connect=connect)
    loop = StandbyLoop(OWN, hosts, Mock(), copy, Mock(rejoin_timeout_s=math.inf), clock)
    turns = loop.turns(Mock())
    for tenth in range(40):
        clock.now.return_value = tenth / 10
        next(turns)
    assert {address for address, _ in sent} == {OWN.address, successor}
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
    known = Remembered((VOTERS,), term=9, version=4)
    hosts = OtherHosts(RunPlace("standby", PLACE, known), connect=lambda _: upstream)
    keeper = Mock(rejoin_timeout_s=60.0)
    turns = StandbyLoop(OWN, hosts, Mock(), copy, keeper, clock).turns(Mock())
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
    hosts = OtherHosts(RunPlace("standby", PLACE), connect=lambda _: upstream)
    keeper = Mock(rejoin_timeout_s=math.inf)
    turns = StandbyLoop(OWN, hosts, Mock(), copy, keeper, clock).turns(Mock())
    for _ in range(3):
        next(turns)
    assert not answers


def test_the_newest_state_begins_and_then_the_first_in_the_list() -> None:
    second = "tcp://10.0.0.3:5", key_of("other"), "other"
    rival = FOLLOW._replace(public_key=second[1], address=second[0], sent_s=9.0)
    for version, is_due in ((2, True), (3, True), (4, False)):
        one = succession(second, voters=(*VOTERS, voter("other")))
        one.follows(rival._replace(copied_term=7, version=version), 4.5)
        assert due(one, 5.0) == is_due


def test_places_are_tried_in_turn_and_leaves_out_the_own_one() -> None:
    one, other = Standby("tcp://10.0.0.2:5", KEY), Standby("tcp://[fe80::1]:6")
    text = standbys_text([one, other])
    assert standbys_in(text) == [one, other]
    assert standbys_in("tcp://x:5 short ftp://x - tcp://x:5") == []
    places = ServerPlaces(own=other.address)
    assert not places.turn(0.0)
    places.learn(standbys_in(text))
    assert [places.turn(0.0) and places.current for _ in range(3)] == [one, None, one]


@pytest.mark.parametrize("has_momentum", [False, True])
def test_a_copy_in_parts_is_a_directory_that_can_be_resumed(tmp_path, has_momentum: bool) -> None:
    run = RunState(SETTINGS, np.arange(SIZE, dtype=np.float32))
    if has_momentum:
        run.store.outer_momentum = np.arange(SIZE, 2 * SIZE, dtype=np.float32)
    with opened_journal(tmp_path / "journal", run):
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
    resumed = RunState.resumed(SETTINGS, read_checkpoint(tmp_path / "copy"))
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
    facts = SentState(RunState(SETTINGS, np.zeros(SIZE, np.float32)), 1, {}).facts
    huge = json.dumps(json.loads(facts) | {"state_bytes": 1 << 40}).encode()
    for wrong in (b"{", b"[]", b'{"version": "1"}', huge):
        with pytest.raises(ProtocolError):
            copy.take_in(answer(facts=wrong))
    with pytest.raises(ProtocolError):
        copy.take_in(answer()._replace(parts=()))
    with pytest.raises(ProtocolError):
        copy.take_in(answer(facts=facts, part=bytes(4 * 10 * SIZE)))
    for text in ("{", "3", '["x", 1]', "[[[]]]", '[[[["key", 0, 5]]]]'):
        with pytest.raises(ProtocolError):
            Remembered.from_json(text)
    assert SETTINGS.vector_size == SIZE


def seats(desk: Desk) -> set[VoterId]:
    """The workers with a vote."""
    known = desk.server.standbys.remembered.voters[-1]
    return {each.voter_id for each in known if each.identity != NO_WORKER}


def works(desk: Desk, key: str, identity: int) -> int:
    """Let a worker with this key join, as if it had pushed a result; return its id."""
    worker_id: int = desk.join(
        f"{key}{identity}".encode(), identity=identity, public_key=key_of(key)
    ).worker_id
    for _ in range(2):
        desk.beat(worker_id, desk.now)
    [member] = [each for each in desk.run.members.members if each.worker_id == worker_id]
    member.pushes = 1
    return worker_id


def test_joins_under_invented_names_and_addresses_count_for_nothing() -> None:
    desk = a_desk()
    followed_by_a_standby(desk)
    for number in range(6):
        who = {"identity": number, "public_key": key_of(f"liar-{number}")}
        desk.join(b"liar-%d" % number, equipment=Equipment(f"host-{number}"), **who)
    for number in range(5):
        followed_by_a_standby(desk, host=f"host-{number}", address=f"tcp://10.0.0.2:{number}")
    standbys = desk.server.standbys
    assert [each.label for each in standbys.remembered.voters[-1][1:]] == ["server"]
    assert len(standbys_in(standbys.text)) == 1
    assert standbys.hold(desk.now)


def test_one_process_of_each_key_has_a_seat_once_it_has_pushed_and_until_it_leaves() -> None:
    desk = a_desk()
    followed_by_a_standby(desk)
    assert not seats(desk)
    first = works(desk, "a", 1)
    for key, identity in (("a", 2), ("b", 3), ("c", 4), ("d", 5), ("e", 6), ("f", 7)):
        works(desk, key, identity)
    followed_by_a_standby(desk)
    others = {(key_of(key), 3 + at) for at, key in enumerate("bcde")}
    assert seats(desk) == {(key_of("a"), 1)} | others
    desk.leave(b"a1", first)
    followed_by_a_standby(desk)
    assert seats(desk) == {(key_of("a"), 2)} | others


def test_both_lists_of_voters_count_until_each_standby_has_stored_the_later_one() -> None:
    desk = a_desk()
    followed_by_a_standby(desk)
    works(desk, "third", 3)
    standbys, before = desk.server.standbys, desk.server.standbys.remembered.voters
    stored = fingerprint(before[-1])
    for sent_s in (desk.now + 0.5, desk.now + 0.6):
        following(desk, sent_s=sent_s, heard_s=desk.now + 0.3, voters=stored)
        assert [len(each) for each in standbys.remembered.voters] == [2, 3]
    following(desk, sent_s=desk.now + 0.7, voters=fingerprint(standbys.remembered.voters[-1]))
    assert [len(each) for each in standbys.remembered.voters] == [3]
    stale = succession(voters=VOTERS[:2])
    stale.visits(THIRD.voter_id, 4.0)
    assert not stale._visits_s


def test_a_standby_that_is_silent_for_long_is_forgotten_only_with_a_majority_without_it() -> None:
    for has_worker in (False, True):
        desk = a_desk()
        followed_by_a_standby(desk)
        standbys = desk.server.standbys
        if has_worker:
            third = works(desk, "third", 3)
            followed_by_a_standby(desk)
        for _ in range(round(FORGOTTEN_AFTER_S) + 10):
            desk.now += 1.0
            if has_worker:
                desk.beat(third, desk.now)
                desk.beat(third, desk.now)
            desk.server.tick(desk.now)
        assert standbys.hold(desk.now) == has_worker
        assert (standbys.text == "") == has_worker


def test_an_operator_forgets_who_is_missing_and_nobody_else() -> None:
    desk = a_desk()
    followed_by_a_standby(desk)
    assert "missing" in desk.ask(b"operator", ForgetMember("standby")).reason  # it is in touch
    desk.now += 10.0
    assert "standby" in desk.report()["majority_warning"]
    for name in ("third", "server"):
        assert KEY in desk.ask(b"operator", ForgetMember(name)).reason
    report = json.loads(desk.ask(b"operator", ForgetMember("standby")).report)
    assert [each["name"] for each in report["voters"]] == ["server"]
    assert report["majority_warning"] is None


def test_visits_of_strangers_are_not_kept() -> None:
    visited = succession()
    for number in range(100):
        visited.visits((THIRD.public_key, number + 10), 1.0)
        visited.visits((key_of(f"stranger-{number}"), NO_WORKER), 1.0)
        visited.follows(FOLLOW._replace(address=f"tcp://10.0.1.1:{number}", public_key=""), 1.0)
    assert not visited._visits_s
    assert len(visited._rivals) <= 2 * MAX_STANDBYS
