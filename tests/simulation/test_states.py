"""The transitions of docs/states.md are those of the code.

Simulated runs and pools drive the state machines. Each change of a state is recorded, with the
event that caused it. Each recorded transition is on the page, and each arrow of the page occurs, by
one of its events at least.
"""

import logging
import re
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import pytest

from desk import Desk
from dist_net.serving.pool.pool import Pool
from dist_net.training.server.protocol import ParameterServer
from dist_net.training.server.succession import Succession
from dist_net.training.worker.cycle import WorkerCycle
from dist_net.wire.messages import Shutdown
from simulation.pool_faults import TroubledPool
from simulation.standby_run import StandbyRun
from simulation.training_run import TrainingRun

PAGE = Path(__file__).parents[2] / "docs/states.md"
OUTSIDE = "[*]"
States = dict[object, str]
Transition = tuple[str, str, str, str]  # machine, state, event, next state


def of_members(server: ParameterServer, _: float) -> States:
    found: States = dict.fromkeys(server.run.members.silent, "silent")
    for number in (each.worker_id for each in server.run.members.members):
        is_waiting = number in server._waiting
        has_lease = server.run.ledger.lease_of(number) is not None
        found[number] = "computing" if has_lease else "waiting" if is_waiting else "idle"
    return found


def of_succession(succession: Succession, now: float) -> States:
    lost_s = succession.places.heard_s + succession._takeover_after_s
    return {"": "following" if now < lost_s else "seeking_votes"}


def of_pool(pool: Pool, now: float) -> States:
    if pool._scheduler.is_draining:
        return {"": "drained" if pool.is_drained else "draining"}
    return {"": "ready" if pool.is_ready(now) else "not_ready"}


def of_requests(pool: Pool, _: float) -> States:
    queues = (queue for of in pool._requests.waiting.values() for queue in of.values())
    queued = {number for queue in queues for number in queue.requests}
    batches = (batch for worker in pool._workers for batch in worker.running.values())
    running = {one.request_id for batch in batches for one in batch.requests}
    names = {(True, True): "lent", (True, False): "queued", (False, True): "running"}
    return {each: names[each in queued, each in running] for each in pool._requests._requests}


def of_versions(pool: Pool, _: float) -> States:
    found: States = {}
    for name, model in pool._models.items():
        found |= {(name, number): one.state.name for number, one in model.versions.items()}
        if model._waiting is not None:
            found[name, model._waiting.description.version] = "waiting"
    return found


MACHINES: dict[type, tuple[str, dict[str, Callable[[Any, float], States]]]] = {
    ParameterServer: (
        "handle tick stop",
        {"Server": lambda server, _: {"": server.state}, "Member": of_members},
    ),
    WorkerCycle: (
        "start received heartbeat_answered computed tick rejoin_with_frames leave",
        {"Worker": lambda cycle, _: {"": cycle.phase.name}},
    ),
    Succession: ("hears visits follows is_due", {"Standby": of_succession}),
    Pool: (
        "admit cancel reload end_rollout unload receive prepared lost child_ended stood_still "
        "dispatch drain",
        {
            "Pool": of_pool,
            "Pool's worker": lambda pool, now: {
                each.worker_id: pool._workers._state(each, now) for each in pool._workers
            },
            "Request": of_requests,
            "Version": of_versions,
        },
    ),
}
MESSAGE_AT = {"handle": 1, "receive": 1, "received": 0, "heartbeat_answered": 0}


def event_of(method: str, arguments: tuple[Any, ...]) -> str:
    """The method, or the kind of its message: that of a heartbeat's answer, if it has no other."""
    if method not in MESSAGE_AT:
        return method
    message = arguments[MESSAGE_AT[method]]
    if message is None and len(arguments) > 2 and arguments[2] is not None:
        message = arguments[2][0]
    return "silence" if message is None else type(message).__name__


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[Transition]]:
    """The transitions of every machine from now on."""
    logging.disable(logging.CRITICAL)
    found: set[Transition] = set()
    for machine, (methods, states) in MACHINES.items():
        for method in methods.split():
            call = recording(getattr(machine, method), method, states, found)
            monkeypatch.setattr(machine, method, call)
    yield found
    logging.disable(logging.NOTSET)


def recording(
    original: Any,
    method: str,
    states: dict[str, Callable[[Any, float], States]],
    found: set[Transition],
) -> Callable[..., Any]:
    @wraps(original)
    def call(self: Any, *arguments: Any, **named: Any) -> Any:
        known = vars(self).setdefault("_recorded", {"now": 0.0, "is_called": False})
        if known["is_called"]:  # by another method, whose event it is
            return original(self, *arguments, **named)
        if method != "reload":  # whose number is a share
            times = (each for each in reversed(arguments) if type(each) is float)
            known["now"] = next(times, known["now"])

        def look(event: str) -> None:
            for machine, of in states.items():
                before, after = known.get(machine, {}), of(self, known["now"])
                for key, _ in before.items() ^ after.items():
                    old, new = before.get(key, OUTSIDE), after.get(key, OUTSIDE)
                    found.add((machine, old, event, new))
                known[machine] = after

        look("time" if known.keys() & states.keys() else "start")
        known["is_called"] = True
        try:
            result = original(self, *arguments, **named)
        finally:
            known["is_called"] = False
            look(event_of(method, arguments))
        if method == "is_due" and result:
            found.add(("Standby", "seeking_votes", method, "next_term"))
        return result

    return call


def on_the_page() -> set[Transition]:
    found = set()
    for machine, text in re.findall(
        r"^## ([^\n]*)\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.M | re.S
    ):
        for old, new, events in re.findall(r"^    (\S+) --> (\S+): ([^\n]*)$", text, re.M):
            found |= {(machine, old, event, new) for event in events.split(", ")}
    return found


def drive_what_is_rare() -> None:
    """A run whose only worker leaves, one that is stopped, and pools that are drained."""
    desk = Desk()
    desk.join(b"a")
    desk.leave(b"a", 1)
    desk.join(b"b")
    desk.ask(b"c", Shutdown("enough"))
    for pause_s in (0.002, 0.005, 1.0):
        pool = TroubledPool(0)
        pool.cluster.schedule.run(3.0)
        for _ in range(20):
            pool.ask()
        drain = pool.cluster.gateway.pool.drain
        pool.cluster.schedule.after(pause_s, lambda drain=drain: drain())
        pool.cluster.schedule.run(8.0)


def test_a_few_runs_and_pools_have_no_transition_that_the_page_lacks(
    recorded: set[Transition],
) -> None:
    for kind, seeds in ((TrainingRun, 10), (StandbyRun, 2), (TroubledPool, 1)):
        for seed in range(seeds):
            kind(seed).run()
    assert recorded - on_the_page() == set()
    assert len(recorded) > 50


@pytest.mark.thorough
def test_each_arrow_of_the_page_occurs(recorded: set[Transition]) -> None:
    drive_what_is_rare()
    for kind, seeds in ((TrainingRun, 60), (StandbyRun, 20), (TroubledPool, 40)):
        for seed in range(seeds):
            kind(seed).run()
    page = on_the_page()
    assert recorded - page == set()
    arrows, occurred = ({(of, old, new) for of, old, _, new in each} for each in (page, recorded))
    assert arrows - occurred == set()
