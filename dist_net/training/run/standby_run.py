"""A run of another host, of which this host keeps a copy, and which it continues if necessary."""

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from socket import gethostname
from typing import Any

from dist_net.errors import DatasetError, DistNetError, NoAnswerError, ProtocolError
from dist_net.ground.checkpoint import read_checkpoint
from dist_net.ground.shared_facts import difference
from dist_net.nets.observer import Following, Observer
from dist_net.nets.run_directory import RunDirectory
from dist_net.processes.entry import STANDBY
from dist_net.processes.launcher import RunningChild, Word
from dist_net.processes.own_directory import announce, temporary_directory
from dist_net.training.run.local_run import REPORT_EVERY_S, SILENCE_S, LocalRun, RunHost
from dist_net.training.server.server_files import last_term, remembered_in
from dist_net.training.server.state import RunState
from dist_net.wire.messages import Snapshot
from dist_net.wire.security import load_server_keys
from dist_net.wire.standbys import Standby
from dist_net.wire.transport import access_with

ANSWERS_WITHIN_S = 2.0


class StandbyRun(LocalRun):
    """The run that ``host`` follows until its server is lost, and then continues."""

    def __init__(self, host: RunHost, *of_run: Any) -> None:
        super().__init__(host, *of_run)
        self._follows = host.follows
        theirs = "" if host.follows is None else host.follows.digest
        if facts := difference(self._settings.recipe_digest, theirs):
            raise DatasetError("this host has {}, the server {}: {}".format(*facts))

    def _server_role(self) -> Sequence[Word]:
        if self._follows is None:
            return super()._server_role()
        server = self._follows.words("--follow", "--follow-keys")
        return [*server, "--rejoin-timeout", str(self._local.rejoin_timeout_s)]

    def _server_of_workers(self) -> Sequence[Word]:
        return self._follows.words() if self._follows else super()._server_of_workers()

    def _watch(self, observer: Observer, server: RunningChild) -> dict[str, Any]:
        if self._follows is not None:
            report = self._watch_elsewhere(self._follows, server)
            if server.exit_code is not None:
                return {}
            self._follows = None
            self._display.warned("the server is lost: this host continues the run")
            here = [each["host"] for each in report.get("workers", ())].count(gethostname())
            if here < (self._local.workers or 0):  # the rest waits for the lost server
                self._supervisor.restart_workers()
        return super()._watch(observer, server)

    def _watch_elsewhere(self, follows: Following, server: RunningChild) -> dict[str, Any]:
        """Watch the run on the other host until it ends, or moves to this host; return a report.

        This host evaluates, too, so that it has the metrics and the best weights.
        """
        report: dict[str, Any] = {}
        self._keep_ports(self._started(server, STANDBY))

        def wait(_waited_s: float) -> None:
            if server.exit_code == 0:
                raise NoAnswerError("the run is done")
            self._wait(server)

        follows.notify = self._display.warned
        with temporary_directory() as directory:
            if follows.keys is not None:
                announce(directory, [follows.server.address], follows.keys)
            while server.listens_as_standby and server.exit_code is None:
                observed = follows.observed(SILENCE_S, self._next_record, wait)
                try:
                    with observed as (observer, report):
                        report = self._show(observer, report)
                except (NoAnswerError, ProtocolError) as error:
                    if server.exit_code is None:
                        wait_s = self._local.rejoin_timeout_s
                        self._silence.begins(
                            f"{error}; this standby tries again for {wait_s:g} s, and goes on with "
                            f"the run once most of its hosts have lost the server, too"
                        )
                if self._directory.checkpoint.exists():
                    self._evaluations.take_if_due(report.get("samples", 0), self._copied)
                ended = self._supervisor.ended_workers
                self._supervisor.report_ended([each for each in ended if each.child.exit_code])
                time.sleep(REPORT_EVERY_S)
        if server.exit_code is not None:
            if server.exit_code != 0:
                self._wait(server)
            self._evaluations.take(self._copied())
        return report

    def _copied(self) -> Snapshot:
        checkpoint = read_checkpoint(self._directory.checkpoint)
        run = RunState.resumed(self._settings, checkpoint)
        samples = run.ledger.applied_samples
        return Snapshot(checkpoint.version, samples, checkpoint.evaluated_weights)


def run_on(host: RunHost, *of_run: Any) -> LocalRun:
    return (LocalRun if host.follows is None else StandbyRun)(host, *of_run)


def successor_of(directory: RunDirectory, keys: Path | None) -> Following | None:
    """Return the run of a directory if a server on another host continues it in a later term.

    ``keys``: the key directory of the run's server; None: ``directory.keys``. With its key pair,
    the run's other servers admit this host as a standby. Return None if nobody answers.
    """
    remembered, own_term = remembered_in(directory.standbys), last_term(directory.owner)
    for address, public_key, *_ in (*remembered.standbys, *remembered.former):
        with suppress(DistNetError):  # such as NoAnswerError
            own = load_server_keys(keys or directory.keys, of_standby=True) if public_key else None
            run = Following(access_with(own, Standby(address, public_key)))
            with run.observed(ANSWERS_WITHIN_S):
                if run.places.term > own_term:
                    return run
    return None
