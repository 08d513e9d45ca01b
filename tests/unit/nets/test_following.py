"""A run is followed from its server to each successor. The network is made up."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dist_net.errors import AccessRefusedError, NoAnswerError, ProtocolError
from dist_net.nets import observer as observer_module
from dist_net.nets.observer import Following
from dist_net.nets.recipes.recipe import built_in_recipe
from dist_net.nets.sources.followed_run import FollowedRun
from dist_net.wire.messages import Snapshot
from dist_net.wire.security import PeerKeys, load_peer_keys, write_peer_keys
from dist_net.wire.standbys import Standby, standbys_text, term_number
from dist_net.wire.transport import ServerAccess

FIRST, SECOND, THIRD = (f"tcp://127.0.0.1:{port}" for port in (1, 2, 3))
STANDBYS = standbys_text([Standby(SECOND), Standby(THIRD)])
TIMEOUT_S = 5.0


def in_term(number: int, drawn: int = 7, version: int = 0, standbys: str = STANDBYS) -> Any:
    """A report."""
    term = ((number - 1) << 48) | drawn
    return {"term": term, "standby_list": standbys, "version": version, "recipe": "digits"}


class Network:
    """``answers``: what each address answers, a report or an error; the others are silent."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.tried: list[str] = []
        self.keys: list[PeerKeys | None] = []
        self.now = 0.0
        self.open = 0

    def sleep(self, duration_s: float) -> None:
        self.now += duration_s

    def observer(self, address: str, keys: PeerKeys | None, timeout_s: float, *_: Any) -> Any:
        network = self

        class Connection:
            def __enter__(self) -> Any:
                network.open += 1
                return self

            def __exit__(self, *_: object) -> None:
                network.open -= 1

            def status(self, *_: int) -> Any:
                network.tried.append(address)
                network.keys.append(keys)
                answer = network.answers.get(address)
                if answer is None:
                    network.now += timeout_s
                    raise NoAnswerError(f"no answer from {address}")
                if isinstance(answer, Exception):
                    raise answer
                return answer

            def snapshot(self, *_: int) -> Snapshot:
                version = network.answers[address]["version"]
                size = built_in_recipe("digits").recipe.layout.size
                return Snapshot(version, 0, np.full(size, version, np.float32))

        return Connection()


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    network = Network()
    monkeypatch.setattr(observer_module, "Observer", network.observer)
    clock = SimpleNamespace(monotonic=lambda: network.now, sleep=network.sleep)
    monkeypatch.setattr(observer_module, "time", clock)
    return network


def seen(following: Following) -> Any:
    """Return the term of the next report, once its connection is closed."""
    with following.observed(TIMEOUT_S) as (_, report):
        return term_number(report["term"])


Followed = Callable[..., Following]


@pytest.fixture
def following(network: Network) -> Following:
    """Of a run whose server has answered, in the fifth term."""
    network.answers[FIRST] = in_term(5)
    following = Following(ServerAccess(FIRST, None))
    assert seen(following) == 5
    return following


def test_a_successor_is_found_among_the_standbys(network: Network, following: Following) -> None:
    said: list[str] = []
    following.notify = said.append
    network.answers = {SECOND: ProtocolError("the server is elsewhere"), THIRD: in_term(6)}
    assert [seen(following) for _ in range(3)] == [6, 6, 6]
    assert network.tried[1:] == [FIRST, SECOND, THIRD, THIRD, THIRD]
    assert following.server == ServerAccess(THIRD, None)
    assert said == [f"the run continues at {THIRD}"]
    assert network.open == 0


def test_standbys_are_tried_until_one_of_them_serves(
    network: Network, following: Following
) -> None:
    network.answers = {}
    elsewhere = ProtocolError("the server is elsewhere")

    class UntilThen(dict[str, Any]):
        def get(self, address: str, _: Any = None) -> Any:
            if address == FIRST:
                return NoAnswerError("nobody listens")  # known at once
            return in_term(6) if address == SECOND and network.now > TIMEOUT_S / 2 else elsewhere

    network.answers = UntilThen()
    assert seen(following) == 6
    assert following.server.address == SECOND


def test_the_error_of_the_servers_own_place_is_raised_once_each_was_tried(
    network: Network, following: Following
) -> None:
    network.answers = {THIRD: AccessRefusedError("no access")}
    with pytest.raises(NoAnswerError, match=f"no answer from {FIRST}"):
        seen(following)
    assert network.tried[1:] == [FIRST, SECOND, THIRD]
    assert following.server.address == FIRST
    assert network.open == 0


def test_a_server_without_standbys_is_tried_once(network: Network) -> None:
    following = Following(ServerAccess(FIRST, None))
    with pytest.raises(NoAnswerError, match=FIRST):
        seen(following)
    assert network.tried == [FIRST]


def test_a_server_of_an_earlier_term_is_not_followed(
    network: Network, following: Following
) -> None:
    network.answers = {SECOND: in_term(6)}
    assert seen(following) == 6
    network.answers = {FIRST: in_term(5)}  # its host is back
    with pytest.raises(NoAnswerError, match=SECOND):
        seen(following)
    network.answers[FIRST] = in_term(7)
    assert seen(following) == 7
    assert following.server.address == FIRST


def test_a_report_without_a_term_as_of_a_pool_is_accepted_first_only(network: Network) -> None:
    network.answers[FIRST] = {"models": []}
    following = Following(ServerAccess(FIRST, None))
    with following.observed(TIMEOUT_S) as (_, report):
        assert report == {"models": []}
    network.answers[FIRST] = in_term(2)
    assert seen(following) == 2
    network.answers = {FIRST: {"term": "late"}}
    with pytest.raises(NoAnswerError, match="replaced"):
        seen(following)


def test_a_standby_of_another_host_is_tried_with_its_own_key_which_goes_to_new_processes(
    network: Network, tmp_path: Path
) -> None:
    own, key = PeerKeys.new(b"s" * 40), "t" * 40
    write_peer_keys(tmp_path, own)
    network.answers[FIRST] = in_term(1, standbys=standbys_text([Standby(SECOND, key)]))
    following = Following(ServerAccess(FIRST, own), tmp_path)
    seen(following)
    network.answers = {SECOND: in_term(2)}
    seen(following)
    expected = PeerKeys(key.encode(), own.public, own.secret)
    assert following.server == ServerAccess(SECOND, expected)
    assert network.keys == [own, own, expected]
    assert load_peer_keys(tmp_path) == expected


def a_followed_run() -> FollowedRun:
    return FollowedRun(FIRST, None, None, lambda _: None)


def test_versions_that_a_successor_repeats_are_not_read(network: Network) -> None:
    run = a_followed_run()
    network.answers[FIRST] = in_term(1, version=100)
    assert run.read().version == 100
    network.answers = {SECOND: in_term(2, version=95)}
    for followed in (run, again := a_followed_run()):
        again.resume(run.to_json())  # by the next process, which was passed the first address
        for read in (followed.version, followed.read):
            with pytest.raises(NoAnswerError, match=r"from version 95; .* more than version 100"):
                read()
    network.answers[SECOND] = in_term(2, version=101)
    assert [each.read().version for each in (run, again)] == [101, 101]


@pytest.mark.parametrize("drawn", [6, 8])
def test_another_run_at_the_same_address_is_read_from_its_beginning(
    network: Network, drawn: int
) -> None:
    run = a_followed_run()
    network.answers[FIRST] = in_term(1, version=100)
    assert run.read().version == 100
    network.answers[FIRST] = in_term(1, drawn, version=3)
    assert (run.version(), run.read().version) == (3, 3)
