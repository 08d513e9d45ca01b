"""A run is computed again from its journal, to the last bit, however its pushes came."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from desk import opened_journal
from dist_net import nn
from dist_net.data import dataset_named
from dist_net.errors import JournalDamagedError, JournalMismatchError
from dist_net.ground.checkpoint import Checkpoint
from dist_net.nets.recipes.recipe import LoadedRecipe, Recipe
from dist_net.optim import AdamW, Cosine
from dist_net.training.run.replayed_run import Replay
from dist_net.training.run.run_options import RunOptions
from dist_net.training.server.consistency import Consistency, OuterStep
from dist_net.training.server.journal_records import (
    Applied,
    Checkpointed,
    Journal,
    JournalRecord,
    Started,
    decode_journal,
    encode_header,
    encode_record,
    run_identity,
    sha256_of,
)
from dist_net.training.server.protocol import ParameterServer, Record, SendToPeer
from dist_net.training.server.settings import RunSettings
from dist_net.training.server.state import RunState
from dist_net.training.worker.local_steps import LocalSteps, TrainingStep
from dist_net.wire.lease_steps import LeaseSteps
from dist_net.wire.messages import Join, Message, Pull, Push, Welcome, Work
from naming import naming

RECIPE = Recipe(
    network=nn.Sequential(
        nn.Rescale(),
        nn.Flatten(),
        nn.Dense(12),
        nn.BatchNorm(activation=nn.relu),
        nn.Dropout(0.3),
        nn.Dense(10),
    ),
    dataset="digits",
    input_shape=(8, 8),
    optimizer=AdamW(),
    learning_rate=0.01,
    schedule=Cosine(),
    batch_size=40,
    epochs=5,
    clip_norm=0.5,
    average_decay=0.99,
)
DIGITS = dataset_named("digits")
LOADED = LoadedRecipe("replayed", "replayed", {}, RECIPE)
SETTINGS = RunOptions("replayed", local_steps=3).on(LOADED, DIGITS).settings(LOADED)
ASYNC = replace(SETTINGS, consistency=Consistency.ASYNC)
BSP = replace(SETTINGS, consistency=Consistency.BSP, local_steps=None)
NODES = (b"a", b"b", b"c")


@pytest.fixture(params=[SETTINGS, ASYNC, BSP], ids=lambda each: str(each.consistency))
def mode(request: pytest.FixtureRequest) -> RunSettings:
    settings: RunSettings = request.param
    return settings


def gradient_of(threads: int) -> TrainingStep:
    return TrainingStep(RECIPE.model, DIGITS, SETTINGS.seed, threads)


class Cluster:
    """A server, and workers that push the results of their leases in any order.

    The first has three parts, and the last exchanges states as frames.
    """

    def __init__(self, run: RunState) -> None:
        self.run = run
        self.server = ParameterServer(run)
        self.records: list[JournalRecord] = []
        settings = run.settings
        rule, rate_at = settings.start_rule(), settings.learning_rate_at
        self.local = LocalSteps(gradient_of(1), rule, settings.batch_size, rate_at)
        self.ids: dict[bytes, int] = {}
        self.requests = dict.fromkeys(NODES, 1000 * run.metrics.workers_joined)
        self.work: dict[bytes, Work] = {}
        for node in NODES:
            digest, size = SETTINGS.recipe_digest, SETTINGS.vector_size
            facts = digest, size, node != b"c", self.requests[node]
            self.ask(node, Join(node.decode(), node[0], *facts, parts=3 if node == b"a" else 1))
        for node in NODES:
            self.ask(node, Pull(*self.numbered(node)))

    def numbered(self, node: bytes) -> tuple[int, int, int]:
        """Return the first fields of a worker's next request."""
        self.requests[node] += 1
        return self.ids[node], node[0], self.requests[node]

    def ask(self, node: bytes, message: Message) -> None:
        """Carry out the server's commands, which may answer any worker."""
        for command in self.server.handle(node, message, 0.0):
            match command:
                case Record(applied):
                    self.records += applied
                case SendToPeer(of, Welcome(worker_id=worker_id)):
                    self.ids[of] = worker_id
                case SendToPeer(of, Work() as work):
                    self.work[of] = work

    def push(self, node: bytes) -> None:
        """Take the local steps of the worker's lease, if it has one, and push the result."""
        if node not in self.work:
            return
        work, packing = self.work.pop(node), self.run.settings.packing
        assert work.state is not None
        base = work.state
        if node == b"c":
            base = np.empty(self.local.rule.state_size, np.float32)
            packing.unpack_base(work.state, out=base)
        for _ in self.local.take(base, work.steps):
            pass
        state = self.local.state
        if node == b"c":
            state = packing.pack_result(base, state)
        sums = self.local.loss_sum, self.local.correct, 0.0
        self.ask(node, Push(*self.numbered(node), work.lease_id, *sums, state))


def train(run: RunState, pushes: int, seed: int) -> list[JournalRecord]:
    """Let three workers push in a random order; return the journal's records."""
    cluster, random = Cluster(run), np.random.default_rng(seed)
    for _ in range(pushes):
        cluster.push(NODES[random.choice(3, p=[0.5, 0.4, 0.1])])
    return cluster.records


def checkpointed(checkpoint: Checkpoint) -> Checkpointed:
    return Checkpointed(checkpoint.version, sha256_of(checkpoint.weights))


def a_run(settings: RunSettings = SETTINGS) -> RunState:
    return RunState(settings, RECIPE.initial_weights(settings.seed))


def journal_of(records: Iterable[JournalRecord], settings: RunSettings = SETTINGS) -> Journal:
    header = encode_header(run_identity(settings.recipe_digest, settings.seed))
    return decode_journal(header + b"".join(map(encode_record, records)))


def started(run: RunState) -> Started:
    settings = run.settings
    steps = settings.batch_size, settings.epochs, settings.learning_rate
    return Started(run.store.version, 1, 1, *steps, settings.clip_norm, settings.average_decay)


def assert_same(replayed: Checkpoint, trained: Checkpoint) -> None:
    assert replayed.version == trained.version
    np.testing.assert_array_equal(replayed.weights, trained.weights)
    assert replayed.optimizer_state.keys() == trained.optimizer_state.keys()
    for name, vector in trained.optimizer_state.items():
        np.testing.assert_array_equal(replayed.optimizer_state[name], vector)


def replay_of(
    journal: Journal, begin: Checkpoint | None = None, settings: RunSettings = SETTINGS
) -> Replay:
    return Replay(settings, journal, gradient_of, begin or RECIPE.initial_weights(SETTINGS.seed))


def test_a_run_with_dropout_buffers_parts_and_frames_is_replayed(mode: RunSettings) -> None:
    run = a_run(mode)
    first = checkpointed(run.checkpoint())
    applied = [each for each in train(run, 60, seed=1) if isinstance(each, Applied)]
    if mode.consistency is Consistency.ASYNC:
        assert max(each.version - each.base_version for each in applied) > 6
    else:
        assert {each.together for each in applied} == {3}
    assert {each.steps.parts for each in applied} >= {1, 3}
    assert {each.is_packed for each in applied} == {False, True}
    share = -(-mode.batch_size // 5)
    assert {each.steps.batch_size for each in applied} == {share} != {mode.batch_size}
    assert run.store.version > 3
    last = run.checkpoint()
    journal = journal_of([started(a_run(mode)), first, *applied, checkpointed(last)])
    replay = replay_of(journal, settings=mode)
    told: list[tuple[int, int]] = []
    result = replay.run(progress=lambda *progress: told.append(progress))
    assert result == (last.version, sha256_of(last.weights).hex(), True, last.version)
    assert told[-1] == (last.version, last.version)
    assert_same(replay.checkpoint(), last)


def test_a_run_is_replayed_across_a_crash_and_changed_settings(
    tmp_path: Path, mode: RunSettings
) -> None:
    path = tmp_path / "journal"
    run = a_run(mode)
    with opened_journal(path, run) as journal:
        journal.append(b"".join(map(encode_record, train(run, 20, seed=5))))
        checkpoint = run.checkpoint()
        journal.append(b"".join(map(encode_record, train(run, 10, seed=6))))
    steps = {"batch_size": 24, "epochs": 7, "learning_rate": 0.003}
    changed = replace(mode, **steps, clip_norm=0.0, average_decay=0.5)
    resumed = RunState.resumed(changed, checkpoint)
    with opened_journal(path, resumed, threads=2) as journal:
        journal.append(b"".join(map(encode_record, train(resumed, 20, seed=7))))
        last = resumed.checkpoint()
        journal.append(encode_record(checkpointed(last)))
    assert last.version > checkpoint.version > 0
    read = decode_journal(path.read_bytes())
    for begin in (None, checkpoint):
        replay = replay_of(read, begin, mode)  # of the settings, the journal has the last word
        assert replay.run().matches
        assert_same(replay.checkpoint(), last)


def test_a_replay_keeps_only_states_that_are_needed_later() -> None:
    run = a_run(ASYNC)
    replay = replay_of(journal_of([started(a_run()), *train(run, 20, seed=2)]), settings=ASYNC)
    for version in range(run.store.version + 1):
        replay.run(max(version, replay.version))
        assert len(replay._kept) <= 4
    assert len(replay._kept) == 0


def test_a_replay_stops_within_the_run_and_the_run_continues_from_there() -> None:
    run = a_run(ASYNC)
    applied = [each for each in train(run, 20, seed=3) if isinstance(each, Applied)]
    replay = replay_of(journal_of([started(a_run(ASYNC)), *applied]), settings=ASYNC)
    assert replay.run(9).version == 9
    halfway = replay.checkpoint()
    left = sum(stop - start for _, start, stop in halfway.ledger["remaining"])
    done = sum(each.steps.samples for each in applied if each.version <= 9)
    assert halfway.ledger["next_epoch"] * SETTINGS.samples - left == done
    resumed = RunState.resumed(ASYNC, halfway)
    while not resumed.ledger.finished:
        train(resumed, 50, seed=4)
        for member in resumed.members.members:
            resumed.remove(member)
    assert resumed.ledger.applied_samples == ASYNC.samples_total


@pytest.mark.parametrize(
    "change",
    [
        *({"steps": {name: value}} for name, value in (("progress", 999), ("pace", 1))),
        {"steps": {"batch_size": 16}},
        {"outer": OuterStep(0.5, 0.5, 1.0)},
    ],
)
def test_a_replay_reports_where_it_first_differs(change: dict[str, Any]) -> None:
    run = a_run()
    records = [started(a_run()), checkpointed(run.checkpoint()), *train(run, 20, seed=8)]
    records.append(checkpointed(run.checkpoint()))
    version = run.store.version
    records += train(run, 20, seed=9)
    index = next(n for n, each in enumerate(records) if isinstance(each, Applied))
    record = records[index]
    if "steps" in change:
        change = {"steps": record.steps._replace(**change["steps"])}
    records[index] = record._replace(**change)
    result = replay_of(journal_of(records)).run()
    assert (result.version, result.matches, result.matched_version) == (version, False, 0)


def test_what_cannot_be_replayed_is_refused() -> None:
    run = a_run(ASYNC)
    records = [started(a_run()), *train(run, 20, seed=10)]
    last = run.store.version
    journal = journal_of(records)
    with pytest.raises(JournalMismatchError, match=naming("release", "recipe", "seed")):
        replay_of(journal_of(records, replace(SETTINGS, seed=1)))
    with pytest.raises(JournalMismatchError, match=naming("version 99", f"0 to {last}")):
        replay_of(journal, settings=ASYNC).run(99)
    replay = replay_of(journal, settings=ASYNC)
    replay.run(4)
    with pytest.raises(JournalMismatchError, match=naming("version 4", "checkpoint")):
        replay_of(journal, replay.checkpoint(), ASYNC)
    begun_later = journal_of([started(a_run())._replace(version=5)])
    with pytest.raises(JournalMismatchError, match=naming("version 0", "5 to 5")):
        replay_of(begun_later)


def test_a_journal_that_applies_samples_twice_is_refused() -> None:
    one = Applied(1, 1, LeaseSteps(0, 0, 32, 0, 32, 32), 0)
    journal = journal_of([started(a_run()), one, one._replace(version=2)])
    with pytest.raises(JournalDamagedError, match=naming("0 to 32", "epoch 0", "version 2")):
        replay_of(journal).run()


def test_a_journal_with_a_state_that_no_worker_received_is_refused() -> None:
    """After a restart, no worker has a state from before the checkpoint."""
    one, two = (
        Applied(1 + n, 1, LeaseSteps(0, 32 * n, 32 * n + 32, 32 * n, 32, 32), 0) for n in range(2)
    )
    again = started(a_run())._replace(version=1)
    journal = journal_of([started(a_run()), one, again, two])
    checkpoint = replace(a_run().checkpoint(), version=1)
    with pytest.raises(JournalMismatchError, match=naming("version 1", "version 0")):
        replay_of(journal, checkpoint)


def test_a_result_that_makes_the_state_infinite_ends_the_replay() -> None:
    one = Applied(1, 1, LeaseSteps(0, 0, 32, 0, 32, 32), 0, outer=OuterStep(3e38, 0.0, 1.0))
    result = replay_of(journal_of([started(a_run()), one])).run()
    assert (result.version, result.matches) == (0, False)
