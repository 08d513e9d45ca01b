"""A cluster on Ray, which places processes on nodes with free CPUs and reports lost nodes.

An actor per process starts and watches it. Arrays do not travel through Ray, but
between the processes, encrypted with keys that the actors receive. Each node needs the extra
``ray``. The actors, and with them the processes, end with the process of ``RayCluster``.
"""

import logging
import math
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from dist_net.errors import DistNetError, ProcessFailedError, RayClusterError, SettingError
from dist_net.ground.command_line import TRUST, importing
from dist_net.nets.run_directory import RunDirectory
from dist_net.processes.equipment import cores_beside_server
from dist_net.processes.launcher import (
    Given,
    LocalProcesses,
    ProcessSpec,
    RunningChild,
    Word,
    output_files,
    outputs,
)
from dist_net.processes.own_directory import temporary_directory
from dist_net.processes.ray_keeper import KEYS, KeeperActor, Seen, ServerPlace, contents
from dist_net.wire.address import bracketed, contact_address
from dist_net.wire.security import OPERATOR, STANDBY, WORKER, add_keys, create_keys, load_peer_keys

logger = logging.getLogger(__name__)

ANY = "auto"  # the cluster of this host
ANSWERS_WITHIN_S = 5.0

# The first bytes of an HTTP/2 connection in each direction (RFC 9113, 3.4); gRPC uses HTTP/2.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_SETTINGS = bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_TLS_ALERT = b"\x15"  # of a Ray cluster with TLS

METHODS_AT_ONCE = 4
KILLED_WITHIN_S = 3.0
SOON_PLACED_S = 5.0
SETTLED_S = 2.0  # until Ray's count of free CPUs includes a placed worker
REACHED_WITHIN_S = 1.0
LOST = -int(signal.SIGKILL)


class RayProcess:
    """A process on a node. Its output is copied to ``files``. ``listens_at``: of a server.

    ``take_back`` receives the files that it leaves in a private run directory.
    """

    def __init__(
        self,
        ray: Any,
        actor: Any,
        started: Any,
        files: tuple[Path, Path],
        listens_at: str,
        take_back: Callable[[Mapping[str, bytes]], None],
    ) -> None:
        self._ray = ray
        self._actor = actor
        self._answer = started
        self._lock = threading.RLock()  # the supervisor polls in another thread
        self._said, self._log = files
        self._listens_at = listens_at
        self._take_back = take_back
        self._exit_code: int | None = None
        self._asked_s = time.monotonic()
        self.is_placed = False
        self.pid, self.host = -1, ""  # on its host
        self.lost = ""  # the reason why reports ended

    def poll(self) -> int | None:
        self._hear(0.0)
        return self._exit_code

    def terminate(self) -> None:
        self.send(signal.SIGTERM)

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        deadline = time.monotonic() + KILLED_WITHIN_S
        while self._exit_code is None and time.monotonic() < deadline:
            self._hear(deadline - time.monotonic())
        self.drop()  # if its node does not answer

    @property
    def waits(self) -> bool:
        """Whether it has waited for a free CPU for ``SOON_PLACED_S``."""
        late_s = self._asked_s + SOON_PLACED_S
        return not self.is_placed and self.poll() is None and time.monotonic() > late_s

    def drop(self) -> None:
        if self.poll() is None:
            self._end(LOST)

    def send(self, number: int) -> None:
        self._hear(0.0)
        if self._exit_code is None and self.is_placed:
            self._actor.signal.remote(number)
        elif self._exit_code is None:
            self._end(-number)

    def _hear(self, timeout_s: float) -> None:
        """Read the actor's report, unless it times out."""
        with self._lock:
            waits = self._exit_code is None
            if waits and self._ray.wait([self._answer], timeout=timeout_s)[0]:
                self._take_in()

    def _take_in(self) -> None:
        errors = self._ray.exceptions
        try:
            seen: Seen = self._ray.get(self._answer)
        except errors.RayTaskError as error:  # raised by the actor
            known = isinstance(error.cause, DistNetError)
            self._say(f"FAILED {error.cause if known else _in_a_line(error)}")
            self._end(error.cause.exit_code if known else 1)
        except errors.RayError as error:
            is_away = isinstance(error, errors.ActorUnavailableError)
            if is_away and self._listens_at and _is_reached(self._listens_at):
                self._answer = self._actor.watch.remote()
            elif is_away or _is_lost(error):  # Ray needs 15 s to be sure
                self.lost = "its node is gone, or Ray's process on it"
                self._end(LOST)
            else:
                self._say(f"FAILED Ray could not start it: {_in_a_line(error)}")
                self._end(LOST)
        else:
            self.is_placed, self.pid, self.host = True, seen.process_id, seen.host
            with self._said.open("ab") as opened:
                opened.write(seen.said)
            with self._log.open("wb" if seen.is_shortened else "ab") as opened:
                opened.write(seen.logged)
            if seen.exit_code is None:
                self._answer = self._actor.watch.remote()
            else:
                if seen.left:
                    self._take_back(seen.left)
                self._end(seen.exit_code)

    def _say(self, line: str) -> None:
        with self._said.open("a") as opened:
            opened.write(f"{line}\n")

    def _end(self, exit_code: int) -> None:
        self._exit_code = exit_code
        if self.lost or not self._listens_at:  # a server's actor can start another
            self._ray.kill(self._actor)


def _is_lost(error: Exception) -> bool:
    """Return whether an actor is lost with its node; else no node can start it."""
    return "creation task" not in str(error) and "untime" not in type(error).__name__


def _is_reached(address: str) -> bool:
    """Return whether a server listens at the address, and its host can be reached."""
    _, _, host, port, _ = contact_address(address)
    with suppress(OSError), socket.create_connection((host, port), REACHED_WITHIN_S):
        return True
    return False


def _in_a_line(error: Exception) -> str:
    return " ".join(str(error).split())


class RayCluster(LocalProcesses):
    """A launcher on the Ray cluster at ``address``; output is copied to files in ``logs``.

    The server of ``run`` is placed on the node of this process if that has a free CPU. On another
    node it writes to a private run directory, which a standby copies to ``run``: if that node is
    lost, the next server continues from there. Workers receive the recipe's files. Without a run,
    this process itself is the server: see ``serve_at``. A server waits for a free CPU for
    ``start_timeout_s`` at most.
    """

    server_options: Sequence[Word] = (Given.SERVER, Given.SERVER_BEYOND, "--keys", Given.KEYS)
    worker_options: Sequence[Word] = ("--connect", Given.SERVER, "--keys", Given.KEYS)

    def __init__(
        self,
        address: str,
        logs: Path,
        run: RunDirectory | None = None,
        start_timeout_s: float = math.inf,
    ) -> None:
        self._ray = connected(address)
        self._start_timeout_s = start_timeout_s
        self._node = self._ray.get_runtime_context().get_node_id()
        super().__init__(logs.absolute())
        self._run = run
        self._path = "" if run is None else str(run.path.absolute())
        self._place: ServerPlace | None = None
        self._keeper: Any = None  # the actor of the server
        self._server: RayProcess | None = None
        self._spec: ProcessSpec | None = None  # of the server
        self._standby: RayProcess | None = None
        self._workers: list[RayProcess] = []
        self._room_again_s = 0.0

    def __enter__(self) -> Self:
        self._keys = self.key_directory = self._stack.enter_context(temporary_directory()) / KEYS
        create_keys(self._keys)
        for role in (WORKER, OPERATOR, STANDBY):
            add_keys(self._keys, role)
        if self._run is not None:
            # Ray prints messages about nodes to stdout, which is for the run's result.
            said = self._stack.enter_context((self._logs / "ray.log").open("a"))
            self._stack.enter_context(redirect_stdout(said))
        self.keys = load_peer_keys(self._keys, OPERATOR)
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._workers:
            process.send(signal.SIGKILL)
        for process in self._workers:
            process.kill()
        self._end_server()
        self._ray.shutdown()  # it prints until then
        self._stack.close()

    @property
    def listen(self) -> tuple[str]:
        """The address that this process listens on for other nodes, if it is the server."""
        return (f"tcp://{bracketed(self._ray.util.get_node_ip_address())}:0",)

    @property
    def address(self) -> str:
        assert self._place is not None
        return self._place.near if self._place.node == self._node else self._place.beyond

    def serve_at(self, near: str, beyond: str) -> None:
        self._place = ServerPlace(self._node, near, beyond)

    def start(self, spec: ProcessSpec) -> RunningChild:
        """Start a process; workers may wait. Raise ProcessFailedError if a server finds no CPU."""
        if not spec.is_server:
            actor = self._actor(spec, contents(self._keys / WORKER), "SPREAD")
            process = self._started(spec, actor, self._run_files())
            self._workers = [each for each in self._workers if each.poll() is None]
            self._workers.append(process)
            return RunningChild(spec.name, self._logs, process)
        assert self._run is not None
        run: dict[str, bytes] = {}  # a restarted server has its files
        if self._keeper is None or (self._server is not None and self._server.lost):
            self._place_server(spec)
            checkpoints = self._run.path.glob("checkpoint*.safetensors")
            more = self._run.manifest, self._run.initial, self._run.journal
            run = self._run_files(*more, *checkpoints)
        assert self._place is not None
        is_here = self._place.node == self._node
        self._spec = spec
        self._server = self._started(spec, self._keeper, self._path if is_here else run)
        if self._standby is None and not is_here:
            self._follow()
        return RunningChild(spec.name, self._logs, self._server)

    def _started(self, spec: ProcessSpec, actor: Any, run: str | dict[str, bytes]) -> RayProcess:
        with outputs(spec.name, self._logs):
            pass  # create and truncate them
        started = actor.start.remote(spec, self._place, run)
        files = output_files(spec.name, self._logs)
        listens_at = self._place.beyond if spec.is_server and self._place else ""
        return RayProcess(self._ray, actor, started, files, listens_at, self._take_back)

    def poll(self) -> float:
        if self._standby is not None and (self._standby.poll() or 0) < 0:  # it was killed
            self._follow()
        return super().poll()

    def _follow(self) -> None:
        """Start a standby on this node, which copies the run from the server's node."""
        assert self._spec is not None
        assert self._run is not None
        words = Given.RUN_DIRECTORY, "--follow", Given.SERVER, "--follow-keys", Given.KEYS, TRUST
        spec = replace(self._spec, name=STANDBY, arguments=words, cores=0, is_server=False)
        actor = self._actor(spec, contents(self._keys / STANDBY), self._here(soft=False))
        self._run.owner.unlink(missing_ok=True)  # of a server in this directory
        self._standby = self._started(spec, actor, self._path)

    def _take_back(self, left: Mapping[str, bytes]) -> None:
        """Write what a server on another node has left: its standby may lack the end."""
        self._end_standby()
        assert self._run is not None
        for name, content in left.items():  # the journal before the checkpoint
            with self._run.replacing(self._run.path / name) as file:
                file.write_bytes(content)

    def _end_standby(self) -> None:
        standby, self._standby = self._standby, None  # `poll` starts no other
        if standby is not None:
            standby.kill()

    def cores_each(self, workers: int) -> int:
        cores = self._cores_of_nodes()
        if each := cores_beside_server(cores, workers):
            return each
        raise SettingError(
            f"{workers} workers and a server need {workers + 1} CPUs, and this Ray cluster has "
            f"{sum(cores)}, on {len(cores)} nodes; expected fewer workers, --workers auto, or more "
            f"nodes"
        )

    def room(self) -> int:
        if any(not each.is_placed and each.poll() is None for each in self._workers):
            self._room_again_s = time.monotonic() + SETTLED_S
        if time.monotonic() < self._room_again_s:
            return 0
        self._room_again_s = time.monotonic() + 1.0
        return int(self._ray.available_resources().get("CPU", 0))

    def _cores_of_nodes(self) -> list[int]:
        alive = (node for node in self._ray.nodes() if node["Alive"])
        return [int(node["Resources"].get("CPU", 0)) for node in alive]

    def _place_server(self, spec: ProcessSpec) -> None:
        """Create the server's actor, on the node of this process if it has a free CPU."""
        self._end_server()
        for process in self._workers:  # of a lost server: they hold all CPUs
            process.drop()
        deadline = time.monotonic() + self._start_timeout_s
        self._place = None
        while self._place is None:
            self._keeper = self._actor(spec, self._server_keys(), self._here(soft=True))
            placed = self._keeper.place_server.remote()
            if not self._ray.wait([placed], timeout=SOON_PLACED_S)[0]:
                logger.warning("no CPU is free yet for %s", spec.name)
            left_s = max(0.0, deadline - time.monotonic())
            try:
                self._place = self._ray.get(placed, timeout=left_s)
            except self._ray.exceptions.GetTimeoutError as error:
                raise ProcessFailedError(
                    f"no CPU for {spec.name} has become free in {self._start_timeout_s:g} s; this "
                    f"Ray cluster has {sum(self._cores_of_nodes())}, and others use them: 'ray "
                    f"status' shows who; or wait for longer, with --start-timeout"
                ) from error
            except self._ray.exceptions.RayError as error:
                if not _is_lost(error):
                    raise ProcessFailedError(
                        f"Ray could not start {spec.name}: {_in_a_line(error)}"
                    ) from error

    def _actor(self, spec: ProcessSpec, keys: dict[str, bytes], strategy: Any) -> Any:
        made = self._ray.remote(KeeperActor).options(
            num_cpus=spec.cores, max_concurrency=METHODS_AT_ONCE, scheduling_strategy=strategy
        )
        return made.remote(keys)

    def _here(self, *, soft: bool) -> Any:
        """Return the strategy to place an actor on this node; ``soft``: or on another."""
        return self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            self._node, soft=soft, _spill_on_unavailable=soft
        )

    def _end_server(self) -> None:
        self._end_standby()
        if self._server is not None and self._server.poll() is None:
            self._server.kill()
        if self._keeper is not None:
            if self._server is not None and not self._server.lost:
                with suppress(self._ray.exceptions.RayError):
                    self._ray.get(self._keeper.close.remote(), timeout=KILLED_WITHIN_S)
            self._ray.kill(self._keeper)
        self._keeper = self._server = None

    def _server_keys(self) -> dict[str, bytes]:
        root = self._keys
        return contents(root, *root.glob("server.*"), *root.glob("*s/*.key"))

    def _run_files(self, *more: Path) -> dict[str, bytes]:
        """Return the options and the recipe of the run, and ``more`` of its files."""
        if self._run is None:
            return {}
        names = self._run.options.name, *self._run.recipe_of_options()[1]
        return contents(self._run.path, *(self._run.path / name for name in names), *more)


def connected(address: str) -> Any:
    """Connect to the Ray cluster at ``address`` and return the module ``ray``.

    ``address``: HOST:PORT, or ``auto`` for the cluster of this host. Raise MissingExtraError, and
    RayClusterError if there is no cluster.
    """
    with importing("ray", "--cluster ray, on each node,"):
        import ray
    if ray.is_initialized():
        return ray
    if address != ANY:
        _require_ray(address)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError, AssertionError) as error:
        raise RayClusterError(
            f"no Ray cluster at {address!r}, of which this host is a node "
            f"({' '.join(str(error).split())}); expected the HOST:PORT of one, to which 'ray start "
            f"--address HOST:PORT' has joined this host"
        ) from error
    finally:
        signal.signal(signal.SIGTERM, handler)  # Ray installs another
    return ray


def _require_ray(address: str) -> None:
    """Raise RayClusterError if no gRPC server listens: Ray itself would retry for minutes."""
    host, _, port = address.rpartition(":")
    try:
        if "://" in address or not (host and port.isdecimal()):
            raise OSError("it is not HOST:PORT")
        place = host.strip("[]"), int(port)
        with socket.create_connection(place, ANSWERS_WITHIN_S) as connection:
            connection.sendall(_PREFACE + _SETTINGS)
            answer = connection.recv(len(_SETTINGS))
        if answer[3:4] != _SETTINGS[3:4] and answer[:1] != _TLS_ALERT:
            raise OSError("the listening process is not Ray")
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RayClusterError(
            f"no Ray cluster at {address!r} ({reason}); expected the HOST:PORT that 'ray start "
            f"--head' prints, 6379 by default"
        ) from error
