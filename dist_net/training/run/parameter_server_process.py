"""The process of a parameter server, for one run.

    python -m dist_net.training.run.parameter_server_process RUN_DIRECTORY [LISTEN_ADDRESS...]
        [--keys DIR] [--resume] [--threads N] [--parent PROCESS_ID] [--trust-recipe]
        [--contact HOST] [--follow ADDRESS [--follow-keys DIR] [--rejoin-timeout SECONDS]]

Prints ``LOADING WHAT`` on stdout every second at first, then ``READY ADDRESS...``, quoted for a
shell, when there is a first checkpoint and workers may connect, or ``FAILED REASON`` when it ends
for a reason of its own. Logs go to stderr. When ``--parent`` has ended, the run is suspended: see
``ServerLoop.suspend``.

It reads the run's options from the run directory, with facts about the dataset; it does not read
the dataset. ``--threads``: how many threads each worker of this host uses, for the journal. Other
hosts reach it at HOST. With ``--follow`` it is a standby of the server at ADDRESS: it prints
``STANDBY ADDRESS...``, keeps a copy of the run in the directory, and is READY once it serves the
run. Without a LISTEN_ADDRESS it never does: the process that started it decides when the copy is
needed.
"""

import argparse
import json
import math
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from dist_net.errors import KeyFileError
from dist_net.ground.checkpoint import read_resumable_checkpoint
from dist_net.ground.command_line import add_trust_argument
from dist_net.nets.offered_recipe import MAX_MANIFEST_BYTES, recipe_offer
from dist_net.nets.run_contents import load_run_recipe
from dist_net.nets.run_directory import RunDirectory
from dist_net.processes.entry import LACKS, STANDBY, StartReports, entry_point, stop_on_signals
from dist_net.processes.equipment import require_bits
from dist_net.training.run.run_options import RunOptions
from dist_net.training.server.loop import OtherHosts, ServerLoop, opened_server
from dist_net.training.server.server_files import (
    NOTICED_WITHIN_S,
    RunOwnership,
    ServerFiles,
    remembered_in,
)
from dist_net.training.server.standby_copy import RunCopy
from dist_net.training.server.standby_loop import StandbyLoop
from dist_net.training.server.standbys import Remembered, RunPlace
from dist_net.wire.address import bracketed, host_towards
from dist_net.wire.security import (
    ServerKeys,
    admit_only,
    admitted_by,
    load_peer_keys,
    load_server_keys,
)
from dist_net.wire.standbys import Standby
from dist_net.wire.transport import ClientSocket, ServerSocket, access_with


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_directory", type=Path)
    parser.add_argument("listen", nargs="*")
    parser.add_argument("--keys", type=Path)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--parent", type=int)
    parser.add_argument("--follow")
    parser.add_argument("--follow-keys", type=Path)
    parser.add_argument("--rejoin-timeout", type=float, default=math.inf)
    parser.add_argument("--contact", default="")
    add_trust_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Serve until the run is shut down, or the process that started this one has ended."""
    reports = StartReports("the recipe")
    directory = RunDirectory(arguments.run_directory)
    options = RunOptions.from_json(directory.options.read_text())
    require_bits(options.bits)
    loaded = load_run_recipe(directory, arguments.trust_recipe)
    settings = options.settings(loaded)
    is_standby = arguments.follow is not None
    keys = load_server_keys(arguments.keys, of_standby=is_standby) if arguments.keys else None
    longest = 4 * settings.packing.result_size
    if not is_standby:
        reports.loads("the weights")
    with ServerSocket(arguments.listen, keys, longest) as listening:
        served = ServedRun(arguments, directory, listening, keys)
        addresses = shlex.join(listening.contact_addresses)
        known = remembered_in(directory.standbys)
        if not is_standby:
            stopped = f"the parameter server on {socket.gethostname()} was stopped"
            with served.opened_server(known) as loop:
                stop_on_signals(
                    lambda reason: loop.stop(f"{stopped}: {reason}"), arguments.parent, loop.suspend
                )
                loop.serve(ready=lambda: reports.ready(addresses))
            return 0
        reports.close()
        print(f"{STANDBY} {addresses}", flush=True)
        copy = RunCopy(settings, directory.checkpoint, directory.journal)
        hosts = OtherHosts(served.place(known), connect=served.connect)
        standby = StandbyLoop(served.followed, hosts, listening, copy, served)
        with closing(standby), ThreadPoolExecutor(2, "writer") as writer:
            stop_on_signals(standby.stop, arguments.parent)
            standby.serve(writer, lambda: print(f"READY {addresses}", flush=True))
    return 0


class ServedRun:
    """The run of a directory, which this process serves, or copies as a standby."""

    def __init__(
        self,
        arguments: argparse.Namespace,
        directory: RunDirectory,
        listening: ServerSocket,
        keys: ServerKeys | None,
    ) -> None:
        self._arguments = arguments
        self._directory = directory
        self._listening = listening
        self.rejoin_timeout_s: float = arguments.rejoin_timeout
        theirs = load_peer_keys(arguments.follow_keys) if arguments.follow_keys else None
        key = "" if theirs is None else theirs.server_public.decode()
        self.followed = Standby(arguments.follow or "", key)
        self._own_pair = theirs or keys
        host = arguments.contact or (arguments.follow and host_towards(arguments.follow))
        ports = [each.rpartition(":")[2] for each in listening.contact_addresses]
        own_host = bracketed(host or socket.gethostname())
        address = f"tcp://{own_host}:{ports[-1]}" if ports else ""
        self._own = Standby(address, "" if keys is None else keys.public.decode())

    def place(self, known: Remembered) -> RunPlace:
        return RunPlace(socket.gethostname(), self._own, known)

    def connect(self, place: Standby) -> ClientSocket:
        access = access_with(self._own_pair, place)
        return ClientSocket(*access, MAX_MANIFEST_BYTES, hang_ups_s=math.inf)

    def _options(self) -> RunOptions:
        return RunOptions.from_json(self._directory.options.read_text())

    def takes(self, facts: dict[str, Any]) -> None:
        """Write what a server has sent beside a state; the recipe's place is this host's."""
        directory, keys, own = self._directory, self._arguments.keys, self._options()
        theirs = RunOptions.from_json(facts.get("options", ""))
        theirs = replace(theirs, recipe=own.recipe, recipe_files=own.recipe_files)
        directory.write(directory.options, theirs.to_json())
        if keys is not None and "keys" in facts:
            admit_only(keys, facts["keys"])
        with directory.translated_errors(), directory.metrics.open("a") as file:
            file.write(str(facts.get("metrics", "")))  # those before this standby followed

    def remembers(self, known: Remembered) -> None:
        if self._own.address:
            self._directory.write(self._directory.standbys, json.dumps(known))

    def _more_facts(self, is_first: bool) -> dict[str, Any]:
        """Return what a standby ``takes`` beside a state."""
        directory = self._directory
        facts: dict[str, Any] = {"options": self._options().to_json()}
        with suppress(OSError):  # later records reach a standby as they reach this host's display
            if is_first:
                lines, newline, _ = directory.metrics.read_text(encoding="utf-8").rpartition("\n")
                facts["metrics"] = lines + newline
        with suppress(KeyFileError):  # an unreadable file admits no peer
            if self._arguments.keys is not None:
                facts["keys"] = admitted_by(self._arguments.keys)
        return facts

    @contextmanager
    def opened_server(self, known: Remembered, after: int | None = None) -> Iterator[ServerLoop]:
        """Yield the loop of the run; ``after``: the term before, of a copied run."""
        arguments, directory, options = self._arguments, self._directory, self._options()
        loaded = load_run_recipe(directory, arguments.trust_recipe)
        settings = options.settings(loaded)
        manifest = directory.manifest.read_bytes() if directory.manifest.exists() else None
        if arguments.resume and not directory.owner.exists():  # a copy that never served
            after = known.term
        ownership = RunOwnership(directory.owner, socket.gethostname(), after=after or 0)
        if ownership.was_elsewhere:
            time.sleep(NOTICED_WITHIN_S)
        every_s, keep, sync = options.checkpoint_every_s, options.keep_checkpoints, options.sync
        written = directory.checkpoint, directory.journal, every_s, keep, sync, directory.standbys
        files = ServerFiles(*written, ownership, arguments.threads)
        begin = (
            read_resumable_checkpoint(directory.checkpoint)
            if arguments.resume or after is not None
            else loaded.recipe.initial_weights(settings.seed)
        )
        class_names, words = settings.recipe_record["class_names"], options.to_json()
        others = OtherHosts(
            self.place(known),
            recipe_offer(loaded, settings.recipe_digest, class_names, manifest, words),
            self._more_facts,
            self._listening.may_follow,
            self.connect,
        )
        with opened_server(self._listening, settings, begin, files, others) as loop:
            yield loop
            for host in loop.server.lacking:
                print(f"{LACKS} {host}", flush=True)


if __name__ == "__main__":
    sys.exit(entry_point(add_arguments, run))
