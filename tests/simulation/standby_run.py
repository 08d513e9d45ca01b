"""A run whose server has standbys on other hosts, under every fault at once, from one seed."""

import errno
import math
from collections import Counter, defaultdict
from contextlib import ExitStack
from functools import partial
from itertools import count
from typing import TypeVar
from unittest import mock

from dist_net.errors import (
    DistNetError,
    FileWriteError,
    InterruptedRunError,
    JoinRefusedError,
    SupersededError,
    WorkerRefusedError,
)
from dist_net.optim import SGD, Adam, Optimizer
from dist_net.processes.supervisor import RestartBudget
from dist_net.training.server import (
    copy_desk,
    copy_pace,
    round_plan,
    standby_loop,
    standbys,
    succession,
)
from dist_net.training.server.consistency import Consistency
from dist_net.training.server.loop import ServerLoop
from dist_net.training.server.members import NO_WORKER
from dist_net.training.server.settings import MINORITY, WAITS, RunSettings
from dist_net.training.worker.cycle import Phase
from dist_net.wire.messages import Follow, ForgetMember
from dist_net.wire.security import OPERATOR, WORKER
from dist_net.wire.standbys import KEY_LENGTH
from simulation.counting import MOMENTA, counting_layout, counting_steps
from simulation.disk import VirtualDisk
from simulation.failures import SimulationFailedError, require
from simulation.followers import VirtualPool
from simulation.invariants import CHECKPOINT
from simulation.liars import Liar
from simulation.memory import VirtualMemory
from simulation.network import NO_FAULTS, Cut, Link, NetworkFaults, VirtualNetwork
from simulation.processes import ServerOptions, VirtualProcess, WorkerProcess
from simulation.schedule import HostClock, TracedSchedule
from simulation.standby_checks import StandbyChecks
from simulation.standby_processes import RunProcess, VirtualHost, newest_state
from simulation.training_run import MINIBATCHES

OPTIMIZERS: tuple[Optimizer, ...] = SGD(), SGD(), Adam()
Process = TypeVar("Process", bound=VirtualProcess)
FIRST = "10.0.0.1"
"""The host of the first server."""

MAX_STANDBYS, MAX_OTHERS, MAX_LIARS = 3, 2, 2
CLOCKS_DIFFER = 0.05
"""How much faster or slower than others a clock may be."""

LONG_SHARE, LONG_S = 0.07, 30.0
"""Some runs have faults for longer than a visit counts, or a silent host."""

SERVER_SHARE = 0.5
"""How often the host of a fault is the server's."""

MAX_PART_BYTES = 500
SHORTER = (
    (round_plan, "MINIBATCHES", MINIBATCHES),
    (copy_pace, "MIN_PART_BYTES", 200),
    (copy_pace, "MIN_WINDOW_BYTES", 300),
    *((each, "MAX_PART_BYTES", MAX_PART_BYTES) for each in (copy_pace, copy_desk, standby_loop)),
    (standby_loop, "COPYING_S", 0.02),
    (standbys, "FORGOTTEN_AFTER_S", 15.0),
    (succession, "VISIT_S", 5.0),
)
"""Constants that are others in simulations: runs are short, and polls are slow."""

WATCH_EVERY_S = 1.0
MAX_STALL_S = 60.0
"""How long nothing may be applied, once nothing goes wrong any more."""

MEETING_S = 8.0
"""When servers have met, once nothing goes wrong any more."""

COPIED_AFTER_S = 12.0
"""When a standby that follows a server has a copy, once nothing goes wrong any more.

A run that ends replaces the states on their way to standbys by its last, so they begin anew."""

RESCUE_AFTER_S = 15.0
"""When a user resumes a run from the newest copy, because no standby can take over, forgets hosts
that are lost, or starts workers again that do not find the server. A standby that does not find it
is started again after ``COPIED_AFTER_S``."""

FAULTS: dict[str, float] = {
    "kill_process": 5.0,
    "kill_worker": 9.0,
    "stop_process": 6.0,
    "stop_worker": 9.0,
    "part_network": 3.0,
    "split_network": 15.0,
    "fail_host": 7.0,
    "lose_host": 9.0,
    "leave": 15.0,
    "break_connection": 9.0,
    "kill_at_disk": 12.0,
    "fill_disk": 12.0,
    "pretend": 12.0,
}
"""The faults of a run, with the mean interval of each in seconds."""


class StandbyRun:
    """The run of one seed."""

    def __init__(self, seed: int, trace_length: int | None = 40) -> None:
        self.seed = seed
        self.schedule = TracedSchedule(seed, trace_length)
        random = self.random = self.schedule.random
        consistency = Consistency.parse(str(random.choice(list(Consistency))))
        samples, epochs = 12 * int(random.integers(3, 7)), int(random.integers(2, 4))
        interval_s = 0.2
        self.settings = RunSettings(
            recipe="counting",
            recipe_digest="counting",
            layout=counting_layout(epochs, samples),
            samples=samples,
            epochs=epochs,
            batch_size=10,
            optimizer=OPTIMIZERS[int(random.integers(len(OPTIMIZERS)))],
            learning_rate=1.0,
            momenta=MOMENTA,
            consistency=consistency,
            heartbeat_interval_s=interval_s,
            heartbeat_timeout_s=3 * interval_s,
            takeover_after_s=float(random.choice([1.5, 2.5])),
            minority=str(MINORITY[1] if random.random() < 0.1 else WAITS),
        )
        self.options = ServerOptions(
            sync=str(random.choice(["always", "never", "0.5"])),
            checkpoint_every_s=float(random.uniform(0.5, 3.0)),
        )
        self.network = VirtualNetwork(self.schedule, self._network_faults())
        self.checks = StandbyChecks(self.settings)
        self._process_ids, self._key_numbers = count(1), count(1)
        self._budgets: defaultdict[str, RestartBudget] = defaultdict(
            lambda: RestartBudget(math.inf)
        )
        is_long = random.random() < LONG_SHARE
        self.faults_until_s = float(random.uniform(2.0, LONG_S if is_long else 11.0))
        self._is_calm = False
        self.happened: Counter[str] = Counter()
        self._is_done = False
        self.hosts: dict[str, VirtualHost] = {}
        self._down: set[str] = set()
        self.processes: dict[str, RunProcess] = {}
        self._copied_key = "copied".ljust(KEY_LENGTH, ".") if random.random() < 0.3 else ""
        self._label = "pod" if random.random() < 0.2 else ""
        standby_count = int(random.integers(1, MAX_STANDBYS + 1))
        for number in range(1 + standby_count + int(random.integers(MAX_OTHERS + 1))):
            self._add_host(f"10.0.0.{number + 1}", is_for_run=number <= standby_count)
        self._add_pool()
        for number in range(int(random.integers(MAX_LIARS + 1))):
            self._add_liar(number)
        for fault, seconds_apart in FAULTS.items():
            self.schedule.repeat(seconds_apart, self.faults_until_s, getattr(self, f"_{fault}"))
        self.schedule.at(self.faults_until_s, self._end_faults)
        self.schedule.after(WATCH_EVERY_S, self._watch)

    def _network_faults(self) -> NetworkFaults:
        if self.random.random() < 0.4:
            return NO_FAULTS
        shares = self.random.uniform(0, (0.05, 0.05, 0.03, 0.1, 0.02))
        delay_s = float(self.random.uniform(0.0, 1.5))
        return NetworkFaults(*map(float, (*shares, delay_s)))

    def _add_host(self, name: str, is_for_run: bool) -> None:
        random = self.random
        rate = 1 + float(random.uniform(-CLOCKS_DIFFER, CLOCKS_DIFFER))
        clock = HostClock(self.schedule, float(random.uniform(0, 1e6)), rate)
        key = (not is_for_run and self._copied_key) or self._new_key(name)
        self.hosts[name] = VirtualHost(name, VirtualDisk(random), VirtualMemory(), clock, key)
        latency_s = float(random.choice([1e-4, 1e-2, 0.03]))
        self.network.set_link(name, Link(latency_s, float(random.choice([math.inf, 1e6, 1e5]))))
        is_first = len(self.hosts) == 1
        if is_for_run:
            self._start_process(name, None if is_first else FIRST)
        for number in range(int(random.integers(is_first or not is_for_run, 3))):
            usual_s = float(random.choice([0.2, 0.6, 1.5]))
            worker = f"worker-{number} on {name}"
            self.schedule.after(random.random(), self._start_worker, worker, name, FIRST, usual_s)

    def _add_pool(self) -> None:
        names, address = list(self.hosts), self.hosts[FIRST].address
        host = names[int(self.random.integers(len(names)))]
        facts = self.settings.vector_size, self.network, self.checks.is_of_run
        VirtualPool(host, address, *facts, lambda: self._is_done)

    def _add_liar(self, number: int) -> None:
        """Add a peer with a key of its own, or with the one that hosts have copies of."""
        hosts = list(self.hosts)
        host = hosts[int(self.random.integers(len(hosts)))]
        key = (number % 2 and self._copied_key) or self._new_key(f"liar-{number}")
        Liar(host, key, hosts, self.network, self.settings, lambda: self._is_done)

    def _new_key(self, owner: str) -> str:
        return f"{owner}#{next(self._key_numbers)}".ljust(KEY_LENGTH, ".")

    # Processes, their supervisors, and users.

    def _start_process(self, host: str, follows: str | None) -> None:
        if host in self._down or (host in self.processes and self.processes[host].is_alive):
            return
        process = self.processes[host] = RunProcess(
            *(next(self._process_ids), self.hosts[host], self.network, self.settings),
            *(self.options, self.checks, follows),
        )
        process.ended = partial(self._process_ended, process)

    def _process_ended(self, process: RunProcess, error: DistNetError | None) -> None:
        """Start it again, unless the run is over: its supervisor, or a user."""
        host = self.hosts[process.host]
        if process.was_killed or isinstance(error, FileWriteError):
            follows = self._served_by(process) if process.loop is None else None
        elif isinstance(error, SupersededError):
            assert process.loop is not None
            self.checks.superseded(process.loop.term)
            self.checks.check_directory(host.disk)
            host.disk = VirtualDisk(self.random)  # another directory
            follows = self._served_by(process)
            for worker in self.checks.workers.values():
                if worker.host == process.host:
                    worker.kill()
        elif isinstance(error, InterruptedRunError) and "leave" in str(error):
            follows = self._served_by(process)
        elif isinstance(error, InterruptedRunError) and "has not arrived" in str(error):
            serving = [each.loop for each in self.processes.values() if each.loop is not None]
            has_journal = all(each.files.journal.error is None for each in serving)
            require(not has_journal, f"the {process.name} ends: {error}")
            return
        else:
            require(error is None, f"the {process.name} ends: {type(error).__name__}: {error}")
            if process.loop is None:
                self.checks.has_last(*newest_state(host.disk))
            else:
                self._require_last_copies(process.loop)
                disks = [each.disk for each in self.hosts.values()]
                self.checks.finished(process.loop, disks)
                self._is_done = True
            return
        self.schedule.after(self._pause_s(process), self._start_process, process.host, follows)

    def _served_by(self, process: RunProcess) -> str:
        """Return the host where a user, or a supervisor, looks for the run's server."""
        serving = [name for name, each in self.processes.items() if each.serves]
        others = [name for name in serving if name != process.host]
        return others[-1] if others else process.follows or FIRST

    def _pause_s(self, ended: VirtualProcess) -> float:
        pause_s = None
        if ended.was_killed:
            pause_s = self._budgets[ended.name].pause_s(self.schedule.now_s - ended.started_s)
        return float(self.random.uniform(0.1, 1.5)) if pause_s is None else pause_s + 0.1

    def _start_worker(self, name: str, host: str, server: str, usual_s: float) -> None:
        known = self.checks.workers.get(name)
        if known is not None and known.is_alive:
            return
        if server == host and not self.processes[host].serves:  # it is started with a standby
            server = self.processes[host].follows or server
        if host in self._down:
            self.schedule.after(1.0, self._start_worker, name, host, server, usual_s)
            return
        own, random = self.hosts[host], self.random

        def seconds_of_step() -> float:
            return usual_s * (10.0 if random.random() < 0.03 else 0.5 + random.random())

        if known is not None:
            self.checks.former_seats.add((known.key, known.loop._identity))
        worker = self.checks.workers[name] = WorkerProcess(
            *(name, next(self._process_ids), self.network),
            own.memory if host == server else None,
            self.settings,
            partial(counting_steps, self.settings),
            seconds_of_step,
            host=host,
            clock=own.clock,
            server=server,
            key=own.key,
            label=self._label,
        )

        def ended(error: DistNetError | None) -> None:
            is_refused = isinstance(error, JoinRefusedError | WorkerRefusedError)
            require(not is_refused, f"the {name} is refused: {error}")
            # Its supervisor knows where the server is.
            self.schedule.after(
                self._pause_s(worker), self._start_worker, name, host, worker.server, usual_s
            )

        worker.ended = ended
        worker.start()

    # Faults.

    def run(self) -> None:
        """Run to the end; raises SimulationFailedError."""
        try:
            with ExitStack() as shorter:
                for module, name, value in SHORTER:
                    shorter.enter_context(mock.patch.object(module, name, value))
                while not self._is_done:
                    self.schedule.step()
        except Exception as error:
            raise SimulationFailedError(
                self.seed,
                error,
                f"{self.settings}, {self.options}, {self.network.faults}\n{self.schedule.trace()}",
                " --standbys",
            ) from error

    def _end_faults(self) -> None:
        self.schedule.note("everybody", "has no more trouble from now on")
        self._is_calm = True
        self.network.faults = NO_FAULTS
        self.network.join()
        for each in self.hosts.values():
            each.disk.kill_after = each.disk.failure = None
        for host in list(self._down):
            self._return(host)

    def _seconds(self) -> float:
        """Return a random duration: mostly short, rarely long."""
        return float(min(self.random.lognormal(1.0, 0.8), 12.0))

    def _some(self, processes: dict[str, Process]) -> Process | None:
        alive = [each for each in processes.values() if each.is_alive]
        return alive[int(self.random.integers(len(alive)))] if alive else None

    def _kill_process(self) -> None:
        if (process := self._some(self.processes)) is not None:
            process.kill()

    def _kill_at_disk(self) -> None:
        if (process := self._some(self.processes)) is not None:
            self.hosts[process.host].disk.kill_after = int(self.random.integers(12))

    def _stop_process(self) -> None:
        if (process := self._some(self.processes)) is not None:
            process.stop(self._seconds())

    def _kill_worker(self) -> None:
        if (worker := self._some(self.checks.workers)) is not None:
            worker.kill()

    def _stop_worker(self) -> None:
        if (worker := self._some(self.checks.workers)) is not None:
            worker.stop(self._seconds())

    def _break_connection(self) -> None:
        if (worker := self._some(self.checks.workers)) is not None:
            worker.lose_connection()

    def _leave(self) -> None:
        if (process := self._some(self.processes)) is not None:
            process.leave()

    def _part_network(self) -> None:
        """Part hosts in groups, or only some from some others, each way by itself."""
        random, hosts = self.random, list(self.hosts)
        if random.random() < 0.6:
            group = dict(zip(hosts, random.integers(0, 3, len(hosts)), strict=True))
            pairs = {(a, b) for a in hosts for b in hosts if group[a] != group[b]}
        else:
            share = random.choice([0.1, 0.3])
            pairs = {(a, b) for a in hosts for b in hosts if a != b and random.random() < share}
        self.schedule.note("network", "has no way for %s", sorted(pairs))

        def cut(source: str, target: str) -> bool:
            return (source, target) in pairs

        self.network.cut(cut)
        self.schedule.after(self._seconds(), self._mend_network, cut)

    def _split_network(self) -> None:
        """Part the hosts in two, or one from another, for longer than others remember them."""
        hosts = list(self.hosts)
        apart = {each for each in hosts if self.random.random() < 0.5}
        others = {*hosts} - apart
        if self.random.random() < 0.5:
            first = self._some_host() or FIRST
            apart, others = {first}, {str(self.random.choice(hosts))} - {first}
        self.schedule.note("network", "is split: %s from %s", sorted(apart), sorted(others))

        def cut(source: str, target: str) -> bool:
            return (source in apart and target in others) or (source in others and target in apart)

        self.network.cut(cut)
        self.schedule.after(float(self.random.uniform(5.0, 20.0)), self._mend_network, cut)

    def _mend_network(self, cut: Cut) -> None:
        self.schedule.note("network", "is mended")
        self.network.join(cut)

    def _fail_host(self) -> None:
        """Cut the power of a host for a while: its processes and unsynced content are lost."""
        host = self._some_host()
        if host is not None:
            self._take_down(host, "fails")
            self.hosts[host].disk.crash()

    def _lose_host(self) -> None:
        """Lose a host with its disk, if the run can go on elsewhere; a new one replaces it."""
        host = self._some_host()
        terms = {name: newest_state(each.disk)[0] for name, each in self.hosts.items()}
        newest = [name for name, term in terms.items() if term == max(terms.values())]
        copies = [each for each in newest if each != host and has_copy(self.processes.get(each))]
        if host is not None and copies:
            self._take_down(host, "is lost")
            self.hosts[host].disk = VirtualDisk(self.random)
            self.hosts[host].key = self._new_key(host)  # by another token

    def _fill_disk(self) -> None:
        if (host := self._some_host()) is not None:
            self.schedule.note(host, "has a full disk")
            self.hosts[host].disk.failure = errno.ENOSPC
            self.schedule.after(self._seconds(), self._empty_disk, host)

    def _empty_disk(self, host: str) -> None:
        self.hosts[host].disk.failure = None

    def _pretend(self) -> None:
        """Claim to be a standby, and a successor, with the key of a worker."""
        host, target = self._some_host(), self._some_host()
        if host is not None and target is not None:
            self.schedule.note(host, "claims to serve the run, at %s", target)
            address, term = self.hosts[host].address, 1 << 62
            now = self.hosts[host].clock.now()
            claims = self.network.connect(host, target, f"impostor on {host}", WORKER, "impostor")
            for serves in (False, True):
                has = term, 0, term, 1, 1, 0, 0, 0
                claims.send(Follow(host, address, *has, now, 0.0, serves=serves))
            self.schedule.after(1.0, claims.close)

    def _some_host(self) -> str | None:
        up = [name for name in self.hosts if name not in self._down]
        serving = [name for name in up if name in self.processes and self.processes[name].serves]
        if serving and self.random.random() < SERVER_SHARE:
            return serving[-1]
        return up[int(self.random.integers(len(up)))] if up else None

    def _take_down(self, host: str, how: str) -> None:
        self.schedule.note(host, how)
        self._down.add(host)
        for process in (*self.processes.values(), *self.checks.workers.values()):
            if process.host == host:
                process.kill()
        self.schedule.after(2 * self._seconds(), self._return, host)

    def _return(self, host: str) -> None:
        """Start the processes of a host again: its former server may be replaced meanwhile."""
        if host not in self._down:
            return
        self.schedule.note(host, "returns")
        self._down.remove(host)
        if host in self.processes:
            former = self.processes[host]
            follows = self._served_by(former)
            is_asked = self.random.random() < 0.5 and follows != host
            asks = is_asked and self._term_at(follows) > self._term_at(host)
            is_empty = not self.hosts[host].disk.exists(CHECKPOINT)
            is_standby = former.loop is None or asks or is_empty
            self._start_process(host, follows if is_standby else None)

    def _term_at(self, host: str) -> int:
        """Return the term of the host's server, which may have ended; 0 if it has none."""
        process = self.processes.get(host)
        return process.loop.term if process is not None and process.loop is not None else 0

    def _watch(self) -> None:
        """Check from time to time that one server continues the run."""
        now = self.schedule.now_s
        stalled_s = now - max(self.faults_until_s, self.checks.progress_s)
        require(stalled_s < MAX_STALL_S, "the run makes no progress")
        serving = [each for each in self.processes.values() if each.serves]
        terms = [each.loop.term for each in serving if each.loop is not None]
        calm_since_s = self._calm_since_s
        met_s = now - MEETING_S
        met = [each for each in serving if max(each.begun_s, calm_since_s) < met_s]
        require(len(met) < 2, f"servers remain: {[each.name for each in met]}")
        for each in list(self.processes.values()):
            begun_s = max((server.sends_states_since_s for server in serving), default=0.0)
            follows_s = now - max(calm_since_s, each.started_s, begun_s)
            copy = each.copy
            if not each.is_alive or copy is None or len(serving) > 1 or follows_s < COPIED_AFTER_S:
                continue
            is_old = terms == [copy.term] and copy.copied_term != copy.term
            if serving and (is_old or not copy.is_whole):
                is_lost = not each.finds_server and self._looks_elsewhere(each, serving[0])
                require(is_lost, f"the {each.name} has no copy after {follows_s:.1f} s")
                self._start_lost_standby(each, serving[0])
        if self._is_calm and stalled_s > RESCUE_AFTER_S:
            if serving:
                self._forget_ended(serving[-1])
                self._start_lost_workers(serving[-1].host)
            else:
                self._rescue()
        self.schedule.after(WATCH_EVERY_S, self._watch)

    @property
    def _calm_since_s(self) -> float:
        goes_on_s = max(each._stopped_until_s for each in self.processes.values())
        return max(self.faults_until_s, goes_on_s)

    def _require_last_copies(self, server: ServerLoop) -> None:
        """Check that standbys in touch with a server that ends have its last version."""
        for each in self.processes.values():
            begun_s = max(self._calm_since_s, each.started_s)
            is_settled = begun_s < self.schedule.now_s - COPIED_AFTER_S
            if each.is_alive and each.copy is not None and each.copy.term == server.term:
                has_last = each.copy.version == server.version
                require(has_last or not is_settled, f"the {each.name} lacks the last version")

    def _looks_elsewhere(self, standby: RunProcess, server: RunProcess) -> bool:
        """Return whether a standby knows another address, or the term of a server that is lost."""
        assert standby.standby is not None
        assert server.loop is not None
        return standby.follows != server.host or standby.standby._others.term > server.loop.term

    def _start_lost_standby(self, standby: RunProcess, server: RunProcess) -> None:
        """Start a standby again, with the address of a server, without a copy of a later term."""
        self.happened["lost standbys"] += 1
        assert standby.standby is not None
        assert server.loop is not None
        if standby.standby._others.term > server.loop.term:
            self.hosts[standby.host].disk = VirtualDisk(self.random)
            self.hosts[standby.host].key = self._new_key(standby.host)
        standby.kill()

    def _forget_ended(self, server: RunProcess) -> None:
        """Forget, as an operator, voters that are lost with their hosts, or were killed."""
        assert server.loop is not None
        alive = {(each.key, NO_WORKER) for each in self.hosts.values()}
        workers = [each for each in self.checks.workers.values() if each.is_alive]
        alive |= {(each.key, each.loop._identity) for each in workers}
        lists = server.loop.server.standbys.remembered.voters
        ended = {voter for each in lists for voter in each if voter.voter_id not in alive}
        operator = self.network.connect(server.host, server.host, "operator", OPERATOR, "operator")
        for voter in sorted(ended):
            self.happened["forgotten"] += 1
            operator.send(ForgetMember(voter.public_key))
        self.schedule.after(1.0, operator.close)

    def _start_lost_workers(self, server: str) -> None:
        """Start workers again with the server's address, where others do not lead them to it."""
        for worker in self.checks.workers.values():
            if worker.is_alive and worker.loop._state.phase is Phase.JOINING:
                self.happened["lost workers"] += 1
                worker.server = server
                worker.kill()

    def _rescue(self) -> None:
        """Resume the run by hand from the newest copy, and lead the other hosts to it."""
        self.happened["rescues"] += 1
        newest = max(self.hosts.values(), key=lambda host: newest_state(host.disk))
        self.schedule.note("user", "resumes the run on %s", newest.name)
        for process in list(self.processes.values()):
            process.ended = lambda _: None
            process.kill()
            self.schedule.after(1.0, self._start_process, process.host, newest.name)
        self._start_process(newest.name, None)


def has_copy(process: RunProcess | None) -> bool:
    """Return whether this process can continue the run."""
    if process is None or not process.is_alive:
        return False
    return process.loop is not None or (process.copy is not None and process.copy.is_whole)
