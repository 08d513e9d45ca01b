"""A run is computed again from its journal, to the last bit, however its pushes came."""

from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from dist_net import nn
from dist_net.data import dataset_named
from dist_net.errors import JournalDamagedError, JournalMismatchError
from dist_net.nets.checkpoint import Checkpoint
from dist_net.nets.recipes.recipe import LoadedRecipe, Recipe
from dist_net.optim import AdamW, ConstantRate, Cosine
from dist_net.training.run.replayed_run import Replay
from dist_net.training.run.run_options import RunOptions
from dist_net.training.server.consistency import AUTO, Consistency
from dist_net.training.server.journal import (
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
from dist_net.training.server.loop import opened_journal
from dist_net.training.server.run_state import RunState
from dist_net.training.server.settings import RunSettings
from dist_net.training.server.state import ParameterServer, Record, SendToPeer
from dist_net.training.worker.local_steps import LeaseSteps, LocalSteps
from dist_net.training.worker.step import TrainingStep
from dist_net.vector import Vector
from dist_net.wire.messages import Join, Message, Pull, Push, Welcome, Work
from dist_net.wire.packing import pack_difference, unpack_weights
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
    batch_size=32,
    epochs=2,
    clip_norm=0.5,
    average_decay=0.99,
)
DIGITS = dataset_named("digits")
LOADED = LoadedRecipe("replayed", "replayed", {}, RECIPE)
SETTINGS = RunOptions("replayed").on(LOADED, DIGITS).settings(LOADED)


def step_of(threads: int) -> TrainingStep:
    return TrainingStep(RECIPE.model, DIGITS, SETTINGS.seed, threads)


class Cluster:
    """A server, and workers that compute from the weights that they were given last."""

    def __init__(self, run: RunState, nodes: tuple[bytes, ...] = (b"a", b"b", b"c")) -> None:
        self.run = run
        self.server = ParameterServer(run)
        self.records: list[JournalRecord] = []
        self.step = step_of(1)
        self.ids: dict[bytes, int] = {}
        self.requests = dict.fromkeys(nodes, 1000 * run.metrics.workers_joined)
        self.work: dict[bytes, tuple[Work, Vector]] = {}
        for node in nodes:
            digest, size = SETTINGS.recipe_digest, SETTINGS.vector_size
            facts = digest, size, None, self.requests[node]
            parts = 3 if node == b"a" else 1  # for local steps
            self.ask(node, Join(node.decode(), node[0], *facts, parts=parts))
            self.ask(node, Pull(*self.numbered(node)))

    def numbered(self, node: bytes) -> tuple[int, int, int]:
        """Return what a worker's next request begins with."""
        self.requests[node] += 1
        return self.ids[node], node[0], self.requests[node]

    def ask(self, node: bytes, message: Message) -> None:
        """Takes in what the server does then, and answers to any worker."""
        for command in self.server.handle(node, message, 0.0):
            match command:
                case Record(applied):
                    self.records += applied
                case SendToPeer(of, Welcome(worker_id=worker_id)):
                    self.ids[of] = worker_id
                case SendToPeer(of, Work(weights=weights) as work) if weights is not None:
                    self.work[of] = work, weights.copy()

    def push(self, node: bytes, together: int) -> None:
        """The worker computes so many minibatches of its lease, if it has any, and pushes them."""
        if node not in self.work:
            return
        work, weights = self.work.pop(node)
        edges = [*range(work.start, work.stop, SETTINGS.batch_size), work.stop][: together + 1]
        gradients, losses = [], 0.0
        for start, stop in pairwise(edges):
            self.step.gather(work.epoch, start, stop)
            gradient = np.empty_like(weights)
            losses += self.step.run(weights, gradient)[0]
            gradients.append(gradient)
        count = len(gradients)
        what = tuple(edges[1:]), (work.version,) * count, losses, 0, 0.0, tuple(range(count))
        lease = *self.numbered(node), work.lease_id, work.start
        self.ask(node, Push(*lease, *what, tuple(gradients)))

    def push_difference(self, node: bytes) -> None:
        """The worker takes the local steps of its lease, if it has any, and pushes."""
        if node not in self.work:
            return
        work, weights = self.work.pop(node)
        rule = self.run.settings.start_local_rule()
        local = LocalSteps(self.step, rule, SETTINGS.batch_size)
        base = np.empty(SETTINGS.vector_size, np.float32)
        unpack_weights(weights, out=base)
        difference = np.empty_like(base)
        steps = LeaseSteps(
            work.epoch, work.start, work.stop, work.learning_rate, work.parts, work.bits
        )
        for _ in local.take(base, steps, difference):
            pass
        what = (
            (work.stop,),
            (work.version,),
            local.loss_sum,
            0,
            0.0,
            (0,),
            (pack_difference(difference, SETTINGS.buffer_count, work.bits),),
        )
        self.ask(node, Push(*self.numbered(node), work.lease_id, work.start, *what))


def train(run: RunState, pushes: int, seed: int) -> list[JournalRecord]:
    """Three workers push up to three gradients at a time, in a random order; the journal of it."""
    random = np.random.default_rng(seed)
    cluster = Cluster(run)
    for _ in range(pushes):
        node = b"abc"[(index := random.choice(3, p=[0.5, 0.4, 0.1])) : index + 1]
        cluster.push(node, int(random.integers(1, 4)))
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
    return Started(run.store.version, 16 * "0", 1, settings.clip_norm, settings.average_decay)


def assert_same(replayed: Checkpoint, trained: Checkpoint) -> None:
    assert replayed.version == trained.version
    np.testing.assert_array_equal(replayed.weights, trained.weights)
    assert replayed.optimizer_state.keys() == trained.optimizer_state.keys()
    for name, vector in trained.optimizer_state.items():
        np.testing.assert_array_equal(replayed.optimizer_state[name], vector)


def replay_of(journal: Journal, begin: Checkpoint | None = None) -> Replay:
    return Replay(SETTINGS, journal, step_of, begin or RECIPE.initial_weights(SETTINGS.seed))


def test_a_run_of_grouped_pushes_with_dropout_and_buffers_is_replayed() -> None:
    run = a_run()
    first = checkpointed(run.checkpoint())
    applied = train(run, 25, seed=1)
    assert {record.together for record in applied} == {1, 2, 3}
    assert max(each.version - each.base_version for each in applied) > 6
    last = run.checkpoint()
    replay = replay_of(journal_of([started(a_run()), first, *applied, checkpointed(last)]))
    told: list[tuple[int, int]] = []
    result = replay.run(progress=lambda *progress: told.append(progress))
    assert result == (last.version, sha256_of(last.weights).hex(), True, last.version)
    assert told[-1] == (last.version, last.version)
    assert_same(replay.checkpoint(), last)


def test_a_run_of_rounds_is_replayed(tmp_path: Path) -> None:
    settings = replace(SETTINGS, consistency=Consistency.parse("bsp:4"))
    run, path = a_run(settings), tmp_path / "journal"
    with opened_journal(path, run) as journal:
        applied = train(run, 60, seed=11)
        last = run.checkpoint()
        journal.append(b"".join(map(encode_record, [*applied, checkpointed(last)])))
    assert run.store.version > 5
    assert {(each.together, each.averaged) for each in applied} == {(4, True)}
    begin = RECIPE.initial_weights(SETTINGS.seed)
    replay = Replay(settings, decode_journal(path.read_bytes()), step_of, begin)
    assert replay.run().matched_version == last.version
    assert_same(replay.checkpoint(), last)


def test_a_run_of_local_steps_is_replayed_across_a_crash(tmp_path: Path) -> None:
    settings = replace(SETTINGS, consistency=Consistency.parse("local:3"), epochs=4)
    run, path, random = a_run(settings), tmp_path / "journal", np.random.default_rng(13)
    for _ in range(2):
        with opened_journal(path, run) as journal:
            cluster = Cluster(run)
            run.members.members[1].packed_bits = 4
            for _ in range(30):
                cluster.push_difference(b"abc"[(index := random.integers(3)) : index + 1])
            last = run.checkpoint()
            journal.append(b"".join(map(encode_record, [*cluster.records, checkpointed(last)])))
        run = RunState.resumed(replace(settings, clip_norm=None), last)
    assert run.store.version > 5
    applied = [each for each in cluster.records if isinstance(each, Applied)]
    assert {each.packed_bits for each in applied} == {4, 8}
    assert {each.parts for each in applied} >= {1, 3}
    assert np.abs(last.optimizer_state["velocity"]).max() > 0
    assert run.store.rule.trained_size < run.store.weights.size  # there are moving averages
    begin = RECIPE.initial_weights(SETTINGS.seed)
    replay = Replay(settings, decode_journal(path.read_bytes()), step_of, begin)
    assert replay.run().matched_version == last.version
    assert_same(replay.checkpoint(), last)


def test_a_run_of_twenty_workers_in_step_at_a_bounded_rate_is_replayed() -> None:
    settings = replace(SETTINGS, consistency=AUTO, schedule=ConstantRate())
    run = a_run(settings)
    nodes = tuple(bytes([97 + each]) for each in range(20))
    cluster, random = Cluster(run, nodes), np.random.default_rng(12)
    for _ in range(4):
        for index in random.permutation(20):
            cluster.push(nodes[index], 1)
    applied = cluster.records
    assert len(applied) > 40
    assert {each.learning_rate for each in applied} == {0.8 * settings.learning_rate}
    last = run.checkpoint()
    begin = RECIPE.initial_weights(SETTINGS.seed)
    journal = journal_of([started(a_run()), *applied, checkpointed(last)])
    replay = Replay(settings, journal, step_of, begin)
    assert replay.run().matched_version == last.version
    assert_same(replay.checkpoint(), last)


def test_a_replay_keeps_only_weights_that_are_needed_later() -> None:
    run = a_run()
    replay = replay_of(journal_of([started(a_run()), *train(run, 12, seed=2)]))
    for version in range(run.store.version + 1):
        replay.run(max(version, replay.version))
        assert len(replay._kept) <= 4
    assert len(replay._kept) == 0


def test_a_replay_stops_within_the_run_and_the_run_goes_on_from_there() -> None:
    run = a_run()
    applied = train(run, 20, seed=3)
    journal = journal_of([started(a_run()), *applied])
    replay = replay_of(journal)
    pair = next(each for each in applied if each.together == 3)
    assert replay.run(pair.version).version == pair.version + 2  # they were applied in one pass
    halfway = replay.checkpoint()
    left = sum(stop - start for _, start, stop in halfway.ledger["remaining"])
    done = sum(each.stop - each.start for each in applied if each.version <= halfway.version)
    assert halfway.ledger["next_epoch"] * SETTINGS.samples - left == done
    resumed = RunState.resumed(SETTINGS, halfway)
    while not resumed.ledger.finished:
        train(resumed, 50, seed=4)
        for member in resumed.members.members:
            resumed.remove(member)
    assert resumed.ledger.applied_samples == SETTINGS.samples_total


def test_a_run_is_replayed_across_a_crash_and_changed_settings(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    run = a_run()
    with opened_journal(path, run) as journal:
        journal.append(b"".join(map(encode_record, train(run, 8, seed=5))))
        checkpoint = run.checkpoint()
        journal.append(b"".join(map(encode_record, train(run, 5, seed=6))))
    changed = replace(SETTINGS, clip_norm=None, average_decay=0.5)
    resumed = RunState.resumed(changed, checkpoint)
    with opened_journal(path, resumed, threads=2) as journal:
        journal.append(b"".join(map(encode_record, train(resumed, 8, seed=7))))
        last = resumed.checkpoint()
        journal.append(encode_record(checkpointed(last)))
    read = decode_journal(path.read_bytes())
    for begin in (None, checkpoint):
        replay = replay_of(read, begin)
        assert replay.run().matches
        assert_same(replay.checkpoint(), last)


def test_a_replay_says_where_it_first_differs() -> None:
    run = a_run()
    records = [started(a_run()), checkpointed(run.checkpoint()), *train(run, 4, seed=8)]
    records.append(checkpointed(run.checkpoint()))
    version = run.store.version
    records += train(run, 4, seed=9)
    index = next(n for n, each in enumerate(records) if isinstance(each, Applied))
    records[index] = records[index]._replace(learning_rate=0.02)
    result = replay_of(journal_of(records)).run()
    assert (result.version, result.matches, result.matched_version) == (version, False, 0)


def test_what_cannot_be_replayed_is_refused() -> None:
    run = a_run()
    records = [started(a_run()), *train(run, 8, seed=10)]
    journal = journal_of(records)
    with pytest.raises(JournalMismatchError, match=naming("release", "recipe", "seed")):
        replay_of(journal_of(records, replace(SETTINGS, seed=1)))
    with pytest.raises(JournalMismatchError, match=naming("version 99", "0 to 16")):
        replay_of(journal).run(99)
    replay = replay_of(journal)
    replay.run(4)
    with pytest.raises(JournalMismatchError, match=naming("version 5", "version 1", "checkpoint")):
        replay_of(journal, replay.checkpoint())
    begun_later = journal_of([Started(5, 16 * "0", 1, None, None)])
    with pytest.raises(JournalMismatchError, match=naming("version 0", "5 to 5")):
        replay_of(begun_later)


def test_a_journal_that_applies_samples_twice_is_refused() -> None:
    one = Applied(1, 1, 1, 0, 0, 32, 0, 0.1, together=1)
    journal = journal_of([started(a_run()), one, one._replace(version=2)])
    with pytest.raises(JournalDamagedError, match=naming("0 to 32", "epoch 0", "version 2")):
        replay_of(journal).run()


def test_a_journal_with_a_version_that_nobody_saw_is_refused() -> None:
    one, other = (
        Applied(version, 1, 1, 0, 32 * version, 32 * version + 32, 0, 0.1, together=2)
        for version in (1, 2)
    )
    third = Applied(3, 1, 1, 0, 320, 352, 1, 0.1, together=1)
    journal = journal_of([started(a_run()), one, other, third])
    with pytest.raises(JournalDamagedError, match=naming("version 3", "version 1")):
        replay_of(journal).run()
