"""The versions of one model as a state machine. No I/O.

    state      event                                             next state    method
    waiting    the target is settled, no version is closing      LOADING       advance
    waiting    a newer version arrives, the model is unloaded    unused        _replace_waiting
    LOADING    a worker has loaded it                            SERVING       refresh
    LOADING    no worker can load it, and there are others       CLOSING       _settle
    SERVING    no worker has it any more                         LOADING       refresh
    SERVING    every worker that has it has the target too,      CLOSING       _settle
               unless that is on trial
    any        the model is unloaded                             CLOSING       unload
    CLOSING    no request is bound to it                         unused        _drop_closed

A *worker* is here one of ``PoolMembership.deciding``. Newcomers, and remote workers beside children
of the gateway, also load the target, but nothing waits for them.

The *target* is the version that every worker should have. It is settled once every worker has
loaded it or failed to. If no worker can load it, the last version that a worker has is the target
again. Workers load a new version one after the other, so that the rest continue to serve.

A target that shall get a share of the requests is on trial, beside the newest version, until its
``Rollout`` ends. If it is withdrawn, the newest version is the target again.
"""

import logging
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from dist_net.serving.pool.description import EncodedImage, ModelDescription, ServedModel
from dist_net.serving.pool.membership import PoolMembership, Worker
from dist_net.serving.pool.requests import InferenceRequest, Result, SendToNode
from dist_net.serving.pool.rollout import Rollout
from dist_net.serving.pool.statistics import (
    ENDS,
    NO_VERSION,
    ModelStatistics,
    RecentLatencies,
    total,
)
from dist_net.wire.serving_messages import Drop, Load

logger = logging.getLogger(__name__)

MAX_LOST_LOADING = 3
"""The number of workers that may be lost while they load a version that no worker has ever loaded;
after that no further worker loads it."""
CONFIRMED = "confirmed"
"""The outcome of a rollout by which the new version replaces the former one."""
SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


class VersionState(Enum):
    LOADING = "loading"  # no worker has it, or none any more
    SERVING = "serving"  # a worker has it: requests may name it
    CLOSING = "closing"  # it only answers the requests that are bound to it


@dataclass(slots=True, eq=False)
class Version:
    """One version, the ``place``-th of its model; ``text`` is its description as JSON.

    ``bound``: the number of requests that only this version may answer. ``was_loaded``: a worker
    has loaded it; ``lost_loading``: the number of workers lost loading it. ``share``: of the
    requests that name no version; below 1, it is on trial.
    """

    description: ModelDescription
    text: str
    samples: tuple[EncodedImage, ...] = ()
    share: float = 1.0
    place: int = 0
    state: VersionState = VersionState.LOADING
    bound: int = 0
    was_loaded: bool = False
    lost_loading: int = 0

    @property
    def is_given_up(self) -> bool:
        """Whether loading it probably ends every worker."""
        return not self.was_loaded and self.lost_loading >= MAX_LOST_LOADING

    @property
    def takes(self) -> tuple[object, ...]:
        """The requirements for a request; versions with equal requirements are interchangeable."""
        one = self.description
        return one.inputs, one.outputs, one.is_batched, one.takes_images, one.has_classes


@dataclass(eq=False, repr=False)
class ModelVersions:
    """One model. ``versions``: the versions that workers have or will load, in order of arrival.

    ``newest``: the last version not on trial that serves, or served if none does now. ``rollout``:
    the last rollout, perhaps ended. ``reason``: why the model,
    or its last version, is not served. ``is_answering``: a live worker has answered for it
    recently. ``is_unloaded``: it was unloaded, and no version has arrived since then. ``came``: the
    number of versions that arrived; ``done``: the number of these that are settled: every worker
    has loaded it or failed to, or a later version replaced it. ``unused``: versions that no worker
    will load any more, until their files are removed.
    """

    name: str
    versions: dict[int, Version] = field(default_factory=dict)
    newest: Version | None = None
    rollout: Rollout | None = None
    is_unloaded: bool = False
    is_answering: bool = False
    reason: str = "no version of it has been loaded yet"
    came: int = 0
    done: int = 0
    statistics: dict[int, ModelStatistics] = field(
        default_factory=lambda: defaultdict(ModelStatistics)
    )
    recent: RecentLatencies = field(default_factory=RecentLatencies)
    unused: list[int] = field(default_factory=list)
    _target: Version | None = None
    _waiting: Version | None = None

    @property
    def is_ready(self) -> bool:
        """Whether a worker can run a request that names no version."""
        return self.newest is not None and self.newest.state is VersionState.SERVING

    @property
    def newest_number(self) -> int:
        return NO_VERSION if self.newest is None else self.newest.description.version

    @property
    def trial(self) -> Rollout | None:
        """The rollout under way."""
        return None if self.rollout is None or self.rollout.outcome else self.rollout

    def served(self) -> ServedModel:
        newest = self.newest
        versions = {n: one.description for n, one in self.versions.items() if self.may_name(n)}
        description, samples = (newest.description, newest.samples) if newest else (None, ())
        is_ready = self.is_ready and self.is_answering
        reason = self.reason or ("" if is_ready else "no worker has answered for it recently")
        state = is_ready, reason, samples, self.is_unloaded
        return ServedModel(self.name, description, versions, *state)

    def description(self, number: int | None) -> ModelDescription | None:
        """Return the description of a served version, by default the newest, or None."""
        if number is not None and not self.may_name(number):
            return None
        one = self.newest if number is None else self.versions[number]
        return None if one is None else one.description

    def may_name(self, number: int) -> bool:
        one = self.versions.get(number)
        return one is not None and one.state is VersionState.SERVING

    def version_for(self, worker: Worker, named: int | None) -> int | None:
        """Return the version that the worker would use: the named or its newest suitable one."""
        numbers = worker.holds.get(self.name, ())
        if named is not None:
            return named if named in numbers else None
        newest = self.newest
        if newest is None:
            return None
        for number in reversed(numbers):
            one = self.versions[number]
            is_serving = one.state is VersionState.SERVING and one.share == 1
            if one is newest or (is_serving and one.takes == newest.takes):
                return number
        return None

    def statistics_of(self, number: int) -> ModelStatistics:
        return self.statistics[number if number in self.versions else NO_VERSION]

    def prepared(self, version: Version) -> None:
        """Add a version that can be loaded, unless it is known already."""
        self.is_unloaded = False
        known = self.versions.get(version.description.version)
        if known is None or known.state is VersionState.CLOSING:
            self.came += 1
            version.place = self.came
            self._replace_waiting(version)

    def unload(self, reason: str) -> None:
        """Close every version: only the requests that are bound to one are still answered."""
        self.is_unloaded, self.reason = True, reason
        self.newest = self._target = None
        self._replace_waiting(None)
        for one in self.versions.values():
            one.state = VersionState.CLOSING
        self.done = self.came

    def load_ended(self, worker: Worker, number: int, reason: str) -> list[SendToNode]:
        """Record that a worker has loaded a version, or failed to for a ``reason``."""
        was_requested = worker.loading.pop((self.name, number), None) is not None
        if number not in self.versions or not was_requested:
            is_wanted = reason or worker.has(self.name, number)
            return [] if is_wanted else [SendToNode(worker.node, Drop(self.name, number))]
        if reason:
            worker.failed.add((self.name, number))
            why = f"{worker.name} could not load version {number}: {reason}"
            logger.warning("load_failed model=%s reason=%s", self.name, why)
            if self.versions[number].state is VersionState.LOADING:
                self.reason = why
            return []
        self.versions[number].was_loaded |= bool(worker.child)
        numbers = {*worker.holds.get(self.name, ()), number}
        worker.holds[self.name] = [one for one in self.versions if one in numbers]
        if self.versions[number] is self._target:
            self.reason = ""
        return []

    def lost_while_loading(self, number: int, reason: str) -> None:
        one = self.versions.get(number)
        if one is None:
            return
        one.lost_loading += 1
        if one.is_given_up:
            self.reason = (
                f"loading version {number} ended {one.lost_loading} workers, the last time with "
                f"{reason!r}; reload the model to try again"
            )
            logger.warning("load_given_up model=%s reason=%s", self.name, self.reason)

    def refresh(self, workers: PoolMembership) -> None:
        """Update the served versions after a change of the workers or of their versions."""
        deciding = workers.deciding(self.name)
        numbers = {number for worker in deciding for number in worker.holds.get(self.name, ())}
        for number, one in self.versions.items():
            if one.state is not VersionState.CLOSING:
                is_held = number in numbers
                one.state = VersionState.SERVING if is_held else VersionState.LOADING
                self.newest = one if is_held and one.share == 1 else self.newest

    def advance(self, workers: PoolMembership, now: float) -> list[SendToNode]:
        """Return the commands to load and drop versions; ``refresh`` before and after."""
        if self._is_settled(workers):
            self._settle(workers)
        commands = self._drop_closed(workers)
        has_closing = any(one.state is VersionState.CLOSING for one in self.versions.values())
        if self._waiting is not None and self._is_settled(workers) and not has_closing:
            number = self._waiting.description.version
            if self.newest is None:
                self._waiting.share = 1.0
            elif self._waiting.share < 1 and self._waiting.takes != self.newest.takes:
                self.reason = (
                    f"version {number} takes other inputs, or has other outputs, than version "
                    f"{self.newest_number}; expected the same, or a reload without a share"
                )
                self.done = self._waiting.place
                self._replace_waiting(None)
                return commands
            logger.info("version_begins model=%s version=%d", self.name, number)
            self.versions[number] = self._target = self._waiting
            self._waiting = None
        target = NO_VERSION if self._target is None else self._target.description.version
        if self.trial is not None and self.trial.number != target:
            self.trial.outcome = "replaced"
        return [*commands, *self._load(workers, now)]

    def report(self, now: float) -> dict[str, Any]:
        """Return the status: requests since the start, and times of the last ten seconds."""
        counted = total(self.statistics.values())
        served = self.served()
        description = served.description
        latencies_s = self.recent.percentiles_s(SHARES.values(), now) or [None] * len(SHARES)
        return {
            "name": self.name,
            "version": description.version if description else None,
            "is_ready": served.is_ready,
            "reason": served.reason,
            "takes_images": description.takes_images if description else False,
            "classes": description.classes if description else 0,
            **{name: getattr(counted, name) for name in (*ENDS, "retried")},
            "requests_per_s": self.recent.requests_per_s(now),
            "latency_ms": {
                name: None if latency_s is None else 1e3 * latency_s
                for name, latency_s in zip(SHARES, latencies_s, strict=True)
            },
            "rollout": self.rollout and self.rollout.report(),
            "batch_rows": {str(n): counted.batches[n].count for n in sorted(counted.batches)},
        }

    def judge(
        self, request: InferenceRequest, result: Result, latency_s: float, ended_worker: bool
    ) -> bool:
        """Observe an answer during a rollout; return whether its version is withdrawn for it."""
        trial = self.trial
        # Those who named a version are no fair sample of the requests.
        if trial is None or request.version != (trial.number if request.is_drawn else None):
            return False
        trial.add(request, result, latency_s, ended_worker)
        if worse := trial.worse:
            self.end_rollout(f"withdrawn: {worse}")
        return bool(worse)

    def end_rollout(self, outcome: str) -> int:
        """Let the version on trial replace the former one if CONFIRMED, else withdraw it.

        Return the version that answers all requests then; NO_VERSION without a rollout.
        """
        target = self._target
        if target is None or target.share == 1 or self.newest is None:
            return NO_VERSION
        logger.warning(
            "rollout_ends model=%s version=%d outcome=%s answers=%s",
            *(self.name, target.description.version, outcome, self.trial and self.trial.report()),
        )
        if self.trial is not None:
            self.trial.outcome = outcome
        if outcome == CONFIRMED:
            target.share = 1.0
            return target.description.version
        target.state = VersionState.CLOSING
        self.done, self._target = max(self.done, target.place), self.newest
        return self.newest_number

    @property
    def _former(self) -> Version | None:
        """The version that every worker keeps beside a target on trial."""
        return self.newest if self._target is not None and self._target.share < 1 else None

    def _is_settled(self, workers: PoolMembership) -> bool:
        """Return whether every worker has loaded the target or failed to."""
        if self._target is None:
            return True
        number = self._target.description.version
        return all(
            (worker.has(self.name, number) or self._cannot_load(worker, number))
            and not any((self.name, one) in worker.loading for one in self.versions)
            for worker in workers.deciding(self.name)
        )

    def _settle(self, workers: PoolMembership) -> None:
        """Close the versions that the target replaces, or the target if no worker can load it."""
        target = self._target
        if target is None:
            return
        if len(workers) or target.is_given_up:
            self.done = max(self.done, target.place)
        others = [one for one in self.versions.values() if one is not target]
        deciding = workers.deciding(self.name)
        spare = [one for one in others if one.share == 1]  # not one that was withdrawn on trial
        held = [one for one in spare if self._holders(one, deciding)]
        if target.state is VersionState.SERVING:
            number = target.description.version
            if target.share < 1 and self.trial is None:
                self.rollout = Rollout(number, self.newest_number, target.share)
            for one in others:
                if one is not self._former and all(
                    worker.has(self.name, number) for worker in self._holders(one, deciding)
                ):
                    one.state = VersionState.CLOSING
        elif held or (target.is_given_up and spare):
            target.state = VersionState.CLOSING
            self._target = (held or spare)[-1]
            self._target.state = VersionState.LOADING
        elif self._waiting is not None and target is not self.newest:  # there was no worker
            target.state, self._target = VersionState.CLOSING, None

    def _load(self, workers: PoolMembership, now: float) -> list[SendToNode]:
        commands = []
        rolling = {  # children, and remote workers, one after the other
            bool(worker.child)
            for worker in workers
            if self.name in worker.holds and self.name in [model for model, _ in worker.loading]
        }
        deciding = workers.deciding(self.name)
        for worker in workers:
            for number in self._wanted(worker, deciding):
                if self.name in worker.holds:
                    if bool(worker.child) in rolling:
                        continue
                    rolling.add(bool(worker.child))
                worker.loading[self.name, number] = now
                load = Load(self.name, number, self.versions[number].text)
                commands.append(SendToNode(worker.node, load))
        return commands

    def _wanted(self, worker: Worker, deciding: list[Worker]) -> list[int]:
        """Return the versions that the worker must load: the target, and missing bound versions."""
        return [
            number
            for number, one in self.versions.items()
            if (
                one in (self._target, self._former)
                or (one.bound and not self._holders(one, deciding))
            )
            and not worker.has(self.name, number)
            and (self.name, number) not in worker.loading
            and not self._cannot_load(worker, number)
        ]

    def _cannot_load(self, worker: Worker, number: int) -> bool:
        return (self.name, number) in worker.failed or self.versions[number].is_given_up

    def _holders(self, one: Version, workers: Iterable[Worker]) -> list[Worker]:
        return [worker for worker in workers if worker.has(self.name, one.description.version)]

    def _drop_closed(self, workers: PoolMembership) -> list[SendToNode]:
        """Drop the closing versions to which no request is, or may yet be, bound."""
        commands = []
        for number, one in list(self.versions.items()):
            is_used = one.bound or (one is self.newest and not one.is_given_up)
            if one.state is not VersionState.CLOSING or is_used:
                continue
            logger.info("version_ends model=%s version=%d", self.name, number)
            for worker in self._holders(one, workers):
                worker.holds[self.name].remove(number)
                if not worker.holds[self.name]:
                    del worker.holds[self.name]
                commands.append(SendToNode(worker.node, Drop(self.name, number)))
            for worker in workers:
                worker.failed.discard((self.name, number))
            del self.versions[number]
            self._not_used(number)
            if number in self.statistics:
                self.statistics_of(NO_VERSION).absorb(self.statistics.pop(number))
        return commands

    def _replace_waiting(self, version: Version | None) -> None:
        replaced, self._waiting = self._waiting, version
        if replaced is not None:
            self._not_used(replaced.description.version)

    def _not_used(self, number: int) -> None:
        """Record that a version is not used any more, unless it has arrived again."""
        if self._waiting is None or self._waiting.description.version != number:
            self.unused.append(number)
