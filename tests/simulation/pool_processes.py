"""The processes around a gateway in virtual time: inference workers and model readers.

A worker is the shipped one: `InferenceWorker` with its `LoadedModels`. Only its network and its
threads are simulated; the network's outputs identify the version and the request.
"""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, cast

from described import described
from dist_net.errors import JoinRefusedError, ModelLoadError, NoAnswerError, ServerLostError
from dist_net.serving.pool.description import ModelDescription
from dist_net.serving.pool.requests import ReadModel, RemoveArrays, Status
from dist_net.serving.worker.loaded_models import LoadedModels
from dist_net.serving.worker.loop import InferenceWorker
from dist_net.serving.worker.served_network import ServedNetwork
from dist_net.wire.heartbeat import HeartbeatSender
from dist_net.wire.messages import Heartbeat, Leave, Message, Refuse
from dist_net.wire.serving_messages import (
    BatchDone,
    JoinPool,
    Load,
    Loaded,
    ModelPrepared,
    PoolWelcome,
    RunBatch,
)
from simulation.event_loop import ThreadedProcess, VirtualThread
from simulation.network import VirtualClientSocket, VirtualNetwork
from simulation.pool_watch import ROW, number_in
from simulation.schedule import TracedSchedule

WORKERS = "gateway"  # where workers connect to
LINGER_S = 0.01  # for the last message of a process that leaves


class NumberedNetwork:
    """Replaces a `ServedNetwork`: outputs the version and the request's number."""

    memory_bytes = 0

    def __init__(self, description: ModelDescription) -> None:
        self.description = description
        self.is_closed = False

    def answer(self, run: RunBatch) -> BatchDone:
        assert not self.is_closed
        outputs = tuple(
            ROW.pack(self.description.version, number_in(payload))
            * (len(payload) // self.description.row_bytes)
            for payload in run.payloads
        )
        return BatchDone(run.batch_id, bytes([Status.OK]) * len(outputs), 0.0, 0.0, outputs)

    def close(self) -> None:
        self.is_closed = True


class VirtualExecutor(Executor):
    """An executor of one call at a time; each call takes ``seconds()``."""

    def __init__(self, thread: VirtualThread, seconds: Callable[[], float]) -> None:
        self._thread = thread
        self._seconds = seconds
        self._waiting: deque[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]] = deque()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self._waiting.append((future, fn, args))
        if len(self._waiting) == 1:
            self._thread.after(self._seconds(), self._end)
        return future

    def _end(self) -> None:
        future, call, arguments = self._waiting[0]
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(call(*arguments))
            except ModelLoadError as error:
                future.set_exception(error)
        self._waiting.popleft()
        if self._waiting:
            self._thread.after(self._seconds(), self._end)


class VirtualHeartbeatSender:
    """Like `dist_net.wire.heartbeat.HeartbeatSender`: a thread with its own connection."""

    def __init__(
        self, thread: VirtualThread, socket: VirtualClientSocket, told: PoolWelcome
    ) -> None:
        self.answer: tuple[Message, float] | None = None
        self._thread = thread
        self._socket = socket
        self._told = told
        self._is_stopped = False
        self._beat()

    def _beat(self) -> None:
        if not self._is_stopped:
            sent_s = self._thread.now()
            self._socket.send(Heartbeat(self._told.worker_id))
            self._thread.after(self._told.heartbeat_interval_s, self._listen, sent_s)

    def _listen(self, sent_s: float) -> None:
        if not self._is_stopped:
            while (answer := self._socket.receive()) is not None:
                self.answer = answer, sent_s
            self._beat()

    def stop(self) -> None:
        if not self._is_stopped:
            self._is_stopped = True
            self._socket.close()


class VirtualInferenceWorker:
    """The process of an inference worker: a child of the gateway, or on its own host.

    ``batch_s(numbers)`` and ``load_s()`` return durations, ``is_deadly(numbers)`` whether a batch
    of these requests kills the process, and ``why_not_loaded(worker, description)`` why a version
    cannot be loaded. ``ended`` is called with the reason when the process has ended.
    ``disturbed_s`` is the time of the last fault that may make the worker seem lost.
    """

    def __init__(
        self,
        name: str,
        process_id: int,
        is_child: bool,
        network: VirtualNetwork,
        batch_s: Callable[[list[int]], float],
        load_s: Callable[[], float],
        is_deadly: Callable[[list[int]], bool],
        why_not_loaded: Callable[["VirtualInferenceWorker", ModelDescription], str],
        ended: Callable[["VirtualInferenceWorker", str], None],
    ) -> None:
        self.name = name
        self.process_id = process_id
        self.is_child = is_child
        self.credential = f"secret of {name}" if is_child else ""
        self.host = WORKERS if is_child else name
        self.process = ThreadedProcess(network.schedule)
        self.slowness = 1.0
        self.disturbed_s = 0.0
        self._network = network
        self._batch_s = batch_s
        self._is_deadly = is_deadly
        self._why_not_loaded = why_not_loaded
        self._ended = ended
        self._thread = VirtualThread(self.process)
        self._socket = network.connect(self.host, WORKERS)
        self._socket.on_arrival = self._wake
        self._hearts: list[VirtualHeartbeatSender] = []
        executor = VirtualExecutor(VirtualThread(self.process), load_s)
        self.models = LoadedModels(self._load, executor)
        self.worker = InferenceWorker(
            cast(Any, self),
            self.models,
            self._start_heartbeats,
            JoinPool(name, self.host, process_id, "", self.credential),
            is_child,
            self._thread,
        )
        self._waits = 0
        self._is_waiting = False
        self._thread.after(0.0, self._go_on)

    # What the shipped worker uses.

    address = WORKERS

    def send(self, message: Message) -> None:
        self._socket.send(message)

    def no_answer(self, waited_s: float) -> NoAnswerError:
        return NoAnswerError(f"no answer in {waited_s:g} s")

    def _start_heartbeats(self, told: PoolWelcome) -> HeartbeatSender:
        socket = self._network.connect(self.host, WORKERS)
        self._hearts.append(VirtualHeartbeatSender(VirtualThread(self.process), socket, told))
        return cast(HeartbeatSender, self._hearts[-1])

    def _load(
        self,
        description: ModelDescription,
        alike: ServedNetwork | None,
        may_go_on: Callable[[], bool],
    ) -> ServedNetwork:
        if not may_go_on():
            raise ModelLoadError("it was dropped")
        if reason := self._why_not_loaded(self, description):
            raise ModelLoadError(reason)
        return cast(ServedNetwork, NumberedNetwork(description))

    # Its loop.

    def _go_on(self) -> None:
        """Do as `InferenceWorker.serve` does, up to the next wait or computation."""
        try:
            while self.worker.leave_reason is None:
                wait_s = self.worker.tick()
                message = self._socket.receive()
                if message is None:
                    self._waits += 1
                    self._is_waiting = True
                    self._thread.after(wait_s, self._has_waited, self._waits)
                    return
                if isinstance(message, RunBatch):
                    self._compute(message)
                    return
                self.worker.handle(message)
        except (ServerLostError, JoinRefusedError, NoAnswerError) as error:
            self.end(str(error))
            return
        self.worker.leave()
        self._thread.after(LINGER_S, self.end, "it left")

    def _compute(self, run: RunBatch) -> None:
        numbers = [number_in(payload) for payload in run.payloads]
        self._thread.is_busy_for(self.slowness * self._batch_s(numbers))
        self._thread.after(0.0, self._has_computed, run)

    def _has_computed(self, run: RunBatch) -> None:
        if self._is_deadly([number_in(payload) for payload in run.payloads]):
            self.kill()
            return
        self.worker.handle(run)
        self._go_on()

    def _wake(self) -> None:
        if self._is_waiting:
            self._is_waiting = False
            self._thread.after(0.0, self._go_on)

    def _has_waited(self, waits: int) -> None:
        if self._is_waiting and waits == self._waits:
            self._is_waiting = False
            self._go_on()

    # What happens to it.

    def _note(self, what: str, *details: object) -> None:
        self.process.schedule.note(self.name, what, *details)

    def kill(self) -> None:
        self.end("it was killed")

    def end(self, reason: str) -> None:
        if not self.process.is_alive:
            return
        self.process.kill()
        for heart in self._hearts:
            heart.stop()
        self._socket.close()
        self._note("ends: %s", reason)
        self._ended(self, reason)

    def is_disturbed(self, seconds: float) -> None:
        """Note a fault of this duration that may make the worker seem lost."""
        self.disturbed_s = max(self.disturbed_s, self.process.schedule.now_s + seconds)

    def stop(self, seconds: float) -> None:
        self._note("is stopped for %.2f s", seconds)
        self.process.stop(seconds)
        self.is_disturbed(seconds)

    def lose_connection(self) -> None:
        """Lose the connection and the messages in transit, and reconnect."""
        self._note("loses its connection")
        self._socket.vanish()
        self.is_disturbed(0.0)


HABITS = ("leaves", "flaps", "holds", "refuses", "raves", "dawdles", "never loads")


class HostileWorker:
    """A remote worker with a key that claims to be a child of the gateway, and has a bad habit.

    It joins again whenever it is out. ``victim()`` returns the host and the process id to claim.
    """

    def __init__(
        self,
        name: str,
        habit: str,
        network: VirtualNetwork,
        victim: Callable[[], tuple[str, int]],
    ) -> None:
        self.name, self.habit = name, habit
        self._victim = victim
        self._network = network
        self._thread = VirtualThread(ThreadedProcess(network.schedule))
        self._worker_id = 0
        self._socket = network.connect(name, WORKERS)
        self._socket.on_arrival = self._receive
        self._join()
        self._beat()

    def _join(self) -> None:
        self._worker_id = 0
        self._socket.send(JoinPool(self.name, *self._victim(), credential="guess"))

    def _beat(self) -> None:
        if self._worker_id:
            self._socket.send(Heartbeat(self._worker_id))
        self._thread.after(0.2, self._beat)

    def _receive(self) -> None:
        while (message := self._socket.receive()) is not None:
            match message:
                case PoolWelcome(worker_id):
                    self._worker_id = worker_id
                case Load(model, version) if self.habit != "never loads":
                    self._socket.send(Loaded(model, version, ""))
                    self._socket.send(Loaded(model, version + 1, ""))
                case RunBatch():
                    self._run(message)
                case Refuse():
                    self._thread.after(0.1, self._join)

    def _run(self, run: RunBatch) -> None:
        count = len(run.payloads)
        match self.habit:
            case "leaves":
                self._socket.send(Leave(self._worker_id))
                self._thread.after(0.02, self._join)
            case "flaps":
                self._socket.vanish()
                self._thread.after(0.02, self._join)
            case "refuses":
                statuses = bytes([Status.FAILED]) * count
                self._socket.send(BatchDone(run.batch_id, statuses, 0.0, 0.0, (b"no",) * count))
            case "raves":
                self._socket.send(BatchDone(run.batch_id, b"", 0.0, 0.0, ()))
            case "dawdles":
                network = NumberedNetwork(described(run.model, run.version, input_shape=(1,)))
                self._thread.after(0.4, self._socket.send, network.answer(run))


class VirtualModelReaders:
    """The processes that read models, one for each: a newer request ends an older process.

    ``read(model, version)`` returns what a process reads in ``read_s()``; ``report`` takes it.
    """

    def __init__(
        self,
        schedule: TracedSchedule,
        read_s: Callable[[], float],
        read: Callable[[str, int], ModelPrepared],
        report: Callable[[ModelPrepared], None],
    ) -> None:
        self._schedule = schedule
        self._read_s = read_s
        self._read = read
        self._report = report
        self._reading: dict[str, int] = {}

    def execute(self, command: ReadModel | RemoveArrays) -> None:
        if isinstance(command, ReadModel):
            self._reading[command.model] = command.version
            self._schedule.after(self._read_s(), self._has_read, *command)

    def _has_read(self, model: str, version: int) -> None:
        if self._reading.get(model) == version:
            del self._reading[model]
            self._report(self._read(model, version))

    def kill(self) -> None:
        """Kill every process that reads."""
        for model, version in self._reading.items():
            self._schedule.note(f"reader-{model}", "is killed")
            self._report(ModelPrepared(model, version, "", "its process was killed", version))
        self._reading.clear()
