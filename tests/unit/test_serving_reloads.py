"""Who waits for a reload, and what each is told."""

import asyncio
from types import SimpleNamespace

from dist_net.serving.description import ServedModel
from dist_net.serving.reloads import Reloads
from dist_net.serving.requests import Status
from dist_net.wire.serving_messages import Prepared


def served(*versions, reason=""):
    newest = SimpleNamespace(version=versions[-1]) if versions else None
    return {"m": ServedModel("m", newest, versions, bool(versions), reason)}


def ended(steps):
    """The outcome of one reload, after ``steps(reloads, rolled_out)``; None: it still waits."""
    rolled_out = set()
    reloads = Reloads(lambda _, version: version in rolled_out)
    loop = asyncio.new_event_loop()
    future = loop.create_future()
    reloads.wait("m", future)
    steps(reloads, rolled_out)
    loop.close()
    return future.result() if future.done() else None


def test_a_reload_ends_when_workers_have_done_with_it():
    def waits(reloads, _):
        reloads.prepared(Prepared("m", 2, "", ""))
        reloads.advance(served(1))

    def serves(reloads, rolled_out):
        waits(reloads, rolled_out)
        rolled_out.add(2)
        reloads.advance(served(1, 2))

    assert ended(waits) is None
    assert (ended(serves).status, ended(serves).version) == (Status.OK, 2)


def test_one_that_no_worker_could_load_says_why():
    def fails(reloads, rolled_out):
        reloads.prepared(Prepared("m", 2, "", ""))
        rolled_out.add(2)
        reloads.advance(served(1, reason="no memory"))

    assert (ended(fails).status, ended(fails).reason) == (Status.FAILED, "no memory")


def test_one_that_could_not_be_read_says_why():
    outcome = ended(lambda reloads, _: reloads.prepared(Prepared("m", 2, "", "no such file")))
    assert (outcome.status, outcome.reason) == (Status.BAD_INPUT, "no such file")


def test_what_comes_unasked_before_it_is_read_does_not_end_it():
    def other(reloads, rolled_out):
        rolled_out.add(1)
        reloads.advance(served(1))
        reloads.prepared(Prepared("another", 2, "", ""))
        reloads.advance(served(1))

    assert ended(other) is None


def test_a_newer_version_that_took_its_place_will_do():
    def overtaken(reloads, rolled_out):
        reloads.prepared(Prepared("m", 2, "", ""))
        rolled_out.add(2)
        reloads.advance(served(3))

    assert ended(overtaken).version == 3


def test_a_training_run_that_began_anew_has_a_lower_version():
    def lower(reloads, rolled_out):
        reloads.prepared(Prepared("m", 5, "", ""))
        rolled_out.add(5)
        reloads.advance(served(700, 5))

    assert (ended(lower).status, ended(lower).version) == (Status.OK, 5)
