"""``dist-net serve`` in front of a run that is still training: its versions are followed."""

import os
import re
import shutil
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from dist_net import Client
from dist_net.data import dataset_named
from dist_net.errors import DistNetError, ReloadError
from dist_net.ground.checkpoint import read_checkpoint
from dist_net.nets.observer import Observer
from dist_net.wire.security import CLIENT, load_peer_keys
from process import test_serve

serve = test_serve.serve

Start = Callable[..., Any]
Eventually = Callable[[Callable[[], Any]], Any]

LIVE = "live"
ROWS = dataset_named("digits").test_inputs[:16]


class Answered(NamedTuple):
    """One answer: by which version, and what."""

    version: int
    probabilities: np.ndarray


class Questions(threading.Thread):
    """A thread that requests the same rows, at most a hundred times a second."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self._address = address
        self._stopped = threading.Event()
        self.answers: list[Answered] = []
        self.errors: list[DistNetError] = []

    def run(self) -> None:
        with Client(self._address, timeout_s=30) as client:
            while not self._stopped.wait(0.01):
                try:
                    result = client.infer(LIVE, ROWS[:8])
                    self.answers.append(Answered(result.version, result.probabilities))
                except DistNetError as error:
                    self.errors.append(error)

    def __enter__(self) -> "Questions":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self.join()

    @property
    def versions(self) -> list[int]:
        """Those that have answered, in the order in which they did so first."""
        return list(dict.fromkeys(answer.version for answer in self.answers))

    def go_on(self, eventually: Eventually) -> None:
        """Waits for answers to questions that are asked from now on."""
        count = len(self.answers)
        eventually(lambda: len(self.answers) > count + 20)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Where the run directory will be."""
    return tmp_path / "run"


@pytest.fixture
def train(start: Start, run: Path) -> Any:
    """A run that takes longer than its test."""
    return start("train", "digits", "--epochs", "100000", "--workers", "1", "--run-dir", str(run))


def test_a_run_is_followed_to_another_host_and_answers_never_go_back(
    serve: Any, start: Start, run: Path, tmp_path: Path, eventually: Eventually
) -> None:
    copy = tmp_path / "copy"
    server = start(
        *("train", "digits", "--epochs", "100000", "--workers", "1", "--run-dir", str(run)),
        *("--listen", "tcp://0.0.0.0:0"),
    )
    token, of_standby = re.findall(
        r"    echo (\w+) \| dist-net join\n", server.says(r"(?s).*run instead.*?\n.*?\n")[0]
    )
    standby = start("join", of_standby, "--workers", "1", "--run-dir", str(copy))
    own_cache = "env", f"XDG_CACHE_HOME={tmp_path / 'cache'}"  # it keeps its keys there
    joined = start("join", token, "--workers", "1", prefix=own_cache)
    pool = serve(f"{LIVE}={token}", "--workers", "1")
    for file in (run / "keys" / "tokens").glob("*.key"):
        file.unlink()  # as after its expiry: the pool has exchanged its token for a key
    with Questions(pool.address) as questions, Client(pool.address, timeout_s=60) as client:
        server.report(lambda report: report["standby_list"] and len(report["workers"]) == 3)
        eventually(lambda: (copy / "checkpoint.safetensors").exists())
        at_the_standby = "env", f"TMPDIR={standby.temporary}"  # it has announced its keys
        address = joined.says(r"joining (tcp://\S+)")[1]
        status = start("status", address, "--json", prefix=at_the_standby)
        assert [each["host"] for each in status.result()["standbys"]] == [socket.gethostname()]
        eventually(lambda: len(questions.versions) > 2)
        assert client.reload(LIVE, timeout_s=60) > 0
        assert len([*(run / "keys" / "clients").glob("*.key")]) == 1
        for process_id in (server.process.pid, *server.child_ids):
            os.kill(process_id, signal.SIGKILL)
        shutil.rmtree(run)
        address = joined.says(r"the run continues at (tcp://\S+)")[1]
        last = questions.answers[-1].version
        eventually(lambda: questions.answers[-1].version > last)

        # Processes that start now find the successor, too.
        assert client.reload(LIVE, timeout_s=60) > last
        with Observer(address, load_peer_keys(copy / "keys" / "operator", CLIENT)) as observer:
            eventually(lambda: len(observer.status()["workers"]) == 2)
            os.kill(joined.children[f"{socket.gethostname()}-0"], signal.SIGKILL)
            eventually(lambda: 2 in [each["starts"] for each in observer.status()["workers"]])
    assert questions.errors == []
    assert pool.get("/pool")[1]["is_ready"]
    numbers = [answer.version for answer in questions.answers]
    assert numbers == sorted(numbers)
    standby.process.send_signal(signal.SIGINT)
    assert standby.ends() == 130, standby.stderr


def test_answers_follow_the_run_and_its_last_version_stays(
    serve: Any, train: Any, run: Path, eventually: Eventually
) -> None:
    pool = serve(f"{LIVE}={train.address}", "--workers", "2")
    with Questions(pool.address) as questions:
        eventually(lambda: len(questions.versions) > 2)
        train.process.send_signal(signal.SIGINT)
        assert train.ends() == 130
        last = read_checkpoint(run / "checkpoint.safetensors").version
        eventually(lambda: questions.answers[-1].version == last)
        with Client(pool.address) as client, pytest.raises(ReloadError, match="ipc://"):
            client.reload(LIVE, timeout_s=30)
        questions.go_on(eventually)
        # The run's reader has long looked for another version, and found nobody to give it one.
        assert questions.answers[-1].version >= last
        last = questions.answers[-1].version
        questions.go_on(eventually)
    pool.command.process.send_signal(signal.SIGTERM)
    assert pool.command.ends() == 0, pool.command.stderr
    assert questions.errors == []
    assert questions.versions == sorted(questions.versions)
    assert questions.answers[-1].version == last
    answers: dict[int, np.ndarray] = {}
    for version, probabilities in questions.answers:
        # The same numbers by the same name, whoever computed them.
        first = answers.setdefault(version, probabilities)
        np.testing.assert_allclose(probabilities, first, atol=1e-6)
    assert len({each.tobytes() for each in answers.values()}) == len(answers)
    # A worker may answer by the version before the newest while it loads that, never by an older.
    place = {version: index for index, version in enumerate(questions.versions)}
    newest = 0
    for version, _ in questions.answers:
        newest = max(newest, place[version])
        assert place[version] >= newest - 1
