"""Models that real processes read, as a gateway has them read; its clock is the test's."""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from dist_net.processes.fork_server import ForkingProcesses
from dist_net.serving.gateway.pool_processes import FORK_SERVER, ModelReaders, PoolSources
from dist_net.serving.pool.description import ModelDescription
from dist_net.serving.pool.requests import ReadModel, RemoveArrays
from dist_net.wire.serving_messages import ModelPrepared

DEADLINE_S = 60.0


class Readers:
    """The model readers of a pool, and what they have reported and nobody has looked at yet."""

    def __init__(self, forks: ForkingProcesses, sources: PoolSources) -> None:
        self.readers = ModelReaders(forks.start, sources, self)
        self.time_s = 0.0
        self._forks = forks
        self.reported: list[ModelPrepared] = []

    def now(self) -> float:
        return self.time_s

    def poll(self) -> None:
        self._forks.receive()
        self.readers.poll(self.reported.append)
        time.sleep(0.005)

    def requests(self, model: str, version: int) -> None:
        self.readers.execute(ReadModel(model, version))

    def removes(self, model: str, version: int) -> None:
        self.readers.execute(RemoveArrays(model, version))

    def hears(self) -> ModelPrepared:
        until_s = time.monotonic() + DEADLINE_S
        while not self.reported:
            assert time.monotonic() < until_s
            self.poll()
        return self.reported.pop(0)

    def answer(self, model: str, version: int) -> ModelPrepared:
        self.requests(model, version)
        answer = self.hears()
        assert (answer.model, answer.requested) == (model, version)
        return answer

    def process_of(self, model: str) -> int:
        """The id of the process that reads a model, once it has been forked."""
        until_s = time.monotonic() + DEADLINE_S
        while True:
            assert time.monotonic() < until_s
            self.poll()
            reading = self.readers._readings.get(model)
            if reading is not None and reading.child.process_id > 0:
                return reading.child.process_id


def arrays(answer: ModelPrepared) -> Path:
    """The file of arrays of a version."""
    assert answer.reason == ""
    return Path(ModelDescription.from_json(answer.description).arrays_path)


@contextmanager
def forking(logs: Path) -> Iterator[ForkingProcesses]:
    forks = ForkingProcesses(FORK_SERVER, logs)
    forks.start(forks.fork_server)
    try:
        yield forks
    finally:
        forks.stop_forking()


@contextmanager
def reading(
    forks: ForkingProcesses,
    directory: Path,
    sources: Mapping[str, str],
    followed: Iterable[str] = (),
) -> Iterator[Readers]:
    """Read models from sources by name."""
    words = {
        name: ["--directory", str(directory), "--", f"{name}={source}"]
        for name, source in sources.items()
    }
    readers = Readers(forks, PoolSources(words, {*followed}, directory))
    try:
        yield readers
    finally:
        readers.readers.close()
