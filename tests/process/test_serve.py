"""``dist-net serve`` as people use it: real processes, real signals, over HTTP."""

import http.client
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from benchmarks.served import TINY, TINY_SHAPE, write_net
from dist_net import Client
from dist_net.errors import (
    DistNetError,
)
from dist_net.nets.darknet import DarknetNetwork
from dist_net.nets.darknet.configuration import read_configuration
from dist_net.nets.darknet.weights import read_weights
from dist_net.nn import Model
from dist_net.nn.inference import Inference, prepare

pytest.importorskip("uvicorn", reason="uvicorn is not installed (the extra `web`)")

OTHER_SYSTEM = Path(__file__).parent / "other_system"
ROWS = np.random.default_rng(0).random((32, *TINY_SHAPE), np.float32)


class Pool:
    """A gateway that has said READY."""

    def __init__(self, command, eventually) -> None:
        self.command = command
        self._eventually = eventually
        said = eventually(lambda: self._ready())
        self.address, self.port = said[1], int(said[2])

    def _ready(self):
        has_ended = self.command.process.poll() is not None
        match = re.search(r"READY http=(http://127.0.0.1:(\d+))", self.command.stdout)
        assert match or not has_ended, self.command.stderr
        return match

    def get(self, path: str):
        """Status and JSON body."""
        return self._request("GET", path)

    def post(self, path: str, body: bytes = b"", **headers: str):
        """Status and JSON body."""
        return self._request("POST", path, body, headers)

    def _request(self, method, path, body=None, headers=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            content = answer.read()
            return answer.status, json.loads(content) if content else None
        finally:
            connection.close()

    def workers(self) -> dict[str, int]:
        """The process ids of workers that have loaded their models, by name."""
        members = self.get("/pool")[1]["workers"]
        return {each["name"]: each["process_id"] for each in members if each["state"] != "loading"}

    def all_workers(self, count: int) -> dict[str, int]:
        """Wait for ``count`` of them: READY is printed when the first worker can answer."""
        self._eventually(lambda: len(self.workers()) == count)
        return self.workers()


@pytest.fixture
def net(tmp_path):
    """A small net on disk."""
    return write_net(TINY, tmp_path / "net")


@pytest.fixture
def serve(start, eventually):
    """Starts a pool on ports that the system chooses."""

    def serve_models(*arguments: str, **options: Path) -> Pool:
        where = "--http", "127.0.0.1:0"
        return Pool(start("serve", *arguments, *where, **options), eventually)

    return serve_models


@pytest.fixture
def expected(net):
    """The net's outputs for ROWS, computed by the test."""
    network = DarknetNetwork(read_configuration(net.directory / "net.cfg"))
    model = Model(network, network.input_shape, input_dtype=np.float32)
    (weights,) = net.directory.glob("*.weights")
    return Inference(model, prepare(model, read_weights(weights, network)))(ROWS)


class Load(threading.Thread):
    """A thread that sends requests without a pause; it keeps all answers and errors.

    ``pause_s`` between two rounds leaves the cores to what is waited for.
    """

    def __init__(self, address: str, pause_s: float = 0.0) -> None:
        super().__init__()
        self._address = address
        self._pause_s = pause_s
        self._stopped = threading.Event()
        self.answers: list[tuple[int, np.ndarray, int]] = []
        self.errors: list[DistNetError] = []

    def run(self) -> None:
        with Client(self._address, timeout_s=30) as client:
            while not self._stopped.wait(self._pause_s):
                try:
                    pending = [(i, client.submit(TINY, ROWS[i])) for i in range(len(ROWS))]
                    for i, each in pending:
                        result = each.result()
                        self.answers.append((i, result.probabilities, result.version))
                except DistNetError as error:
                    self.errors.append(error)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self.join()

    def require_right(self, expected) -> None:
        assert not self.errors, self.errors[:3]
        for i, probabilities, _ in self.answers:
            np.testing.assert_allclose(probabilities, expected[i], atol=1e-6)


@pytest.mark.main_path
def test_every_interface_gives_what_the_net_gives(serve, net, expected):
    pool = serve(net.source, "--workers", "1")
    page = f"http://127.0.0.1:{pool.port}/"
    assert f"serving {TINY} (version 1); the page is {page}\n" in pool.command.stderr
    with Client(pool.address) as client:
        np.testing.assert_allclose(
            client.infer(TINY, ROWS[0]).probabilities, expected[0], atol=1e-6
        )
        np.testing.assert_allclose(
            client.infer(TINY, ROWS[:8]).probabilities, expected[:8], atol=1e-6
        )
        # More than a batch.
        np.testing.assert_allclose(client.infer(TINY, ROWS).probabilities, expected, atol=1e-6)
    body = {
        "inputs": [
            {
                "name": "input",
                "shape": [2, *TINY_SHAPE],
                "datatype": "FP32",
                "data": ROWS[:2].ravel().tolist(),
            }
        ]
    }
    status, answer = pool.post(f"/v2/models/{TINY}/infer", json.dumps(body).encode())
    assert status == 200
    found = np.reshape(answer["outputs"][0]["data"], (2, 10))
    np.testing.assert_allclose(found, expected[:2], atol=1e-6)
    assert answer["model_version"] == "1"


@pytest.mark.parametrize(
    ("number", "workers"),
    [
        pytest.param(signal.SIGKILL, 2, marks=pytest.mark.main_path),
        (signal.SIGSTOP, 2),
        (signal.SIGKILL, 1),
    ],
)
def test_a_lost_worker_costs_no_request_and_is_replaced(
    serve, net, expected, eventually, number, workers
):
    pool = serve(net.source, "--workers", str(workers))
    before = pool.all_workers(workers)
    with Load(pool.address) as load:
        eventually(lambda: len(load.answers) > 200)
        os.kill(before["worker-0"], number)
        eventually(lambda: pool.workers().get("worker-0") not in (None, before["worker-0"]))
        eventually(lambda: pool.get("/v2/health/ready")[0] == 200)
        count = len(load.answers)
        eventually(lambda: len(load.answers) > count + 200)
    if workers == 1:  # refused while there was none; nothing else failed
        assert all("worker" in str(each) for each in load.errors), load.errors[:3]
        load.errors.clear()
    load.require_right(expected)
    assert pool.workers().items() >= before.items() - {("worker-0", before["worker-0"])}
    assert not Path(f"/proc/{before['worker-0']}/exe").exists()


@pytest.mark.main_path
def test_sigterm_lets_what_was_admitted_be_answered(serve, net, expected):
    pool = serve(net.source, "--workers", "2", "--max-batch-size", "1")
    with Client(pool.address, timeout_s=10) as client:
        pending = [client.submit(TINY, ROWS[i % 32]) for i in range(100)]
        pending[0].result()
        pool.command.process.send_signal(signal.SIGTERM)
        answered, refusals = 0, []
        for i, each in enumerate(pending):
            try:
                found = each.result().probabilities
            except DistNetError as error:
                refusals.append(str(error))
            else:
                np.testing.assert_allclose(found, expected[i % 32], atol=1e-6)
                answered += 1
    assert answered
    ends = "shutting down", "stopped", "no answer"
    assert all(any(end in each for end in ends) for each in refusals), refusals
    assert pool.command.ends() == 0
    assert not [*pool.command.temporary.iterdir()]
    assert not pool.command.children


@pytest.mark.main_path
def test_a_reload_serves_the_next_version_and_fails_nothing(serve, net, expected, eventually):
    pool = serve(net.source, "--workers", "2")
    with Load(pool.address) as load, Client(pool.address) as client:
        eventually(lambda: len(load.answers) > 50)
        assert client.reload(TINY, timeout_s=60) == 2
        eventually(lambda: load.answers[-1][2] == 2)
        assert pool.post(f"/v2/repository/models/{TINY}/load")[0] == 200
        eventually(lambda: load.answers[-1][2] == 3)
    load.require_right(expected)
    versions = [version for _, _, version in load.answers]
    assert set(versions) == {1, 2, 3}


def test_workers_are_replaced_though_prepared_weights_and_logs_were_removed(
    serve, net, expected, tmp_path, eventually
):
    pool = serve(net.source, "--workers", "2", "--log-dir", str(tmp_path / "logs"))
    (prepared,) = net.directory.glob("*.prepared")
    before = pool.all_workers(2)
    prepared.unlink()
    shutil.rmtree(tmp_path / "logs")
    for process_id in before.values():
        os.kill(process_id, signal.SIGKILL)
    eventually(lambda: pool.get(f"/v2/models/{TINY}/versions/2/ready")[0] == 200)
    with Client(pool.address, timeout_s=60) as client:
        found = client.infer(TINY, ROWS[:8])
    np.testing.assert_allclose(found.probabilities, expected[:8], atol=1e-6)
    assert prepared.exists()


def test_children_are_replaced_once_a_descriptor_is_free(serve, net, eventually):
    pool = serve(net.source, "--workers", "1")
    before = pool.all_workers(1) | pool.command.children
    process_id = pool.command.process.pid
    soft, hard = resource.prlimit(process_id, resource.RLIMIT_NOFILE)
    resource.prlimit(process_id, resource.RLIMIT_NOFILE, (3, hard))
    for name in ("worker-0", "fork-server"):
        os.kill(before[name], signal.SIGKILL)
        pool.command.says(f"child_not_started name={name}|{name} cannot be started")
    resource.prlimit(process_id, resource.RLIMIT_NOFILE, (soft, hard))
    for name in ("worker-0", "fork-server"):
        eventually(lambda name=name: pool.command.children.get(name) not in (None, before[name]))
    eventually(lambda: pool.get("/v2/health/ready")[0] == 200)
    with Client(pool.address, timeout_s=60) as client:
        assert client.reload(TINY, timeout_s=60) == 2


@pytest.mark.main_path
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing-like-this"], "'nothing-like-this'"),
        (["x.cfg"], "x.cfg"),
        ([], "runs/"),
        (["darknet53", "--workers", "0"], "--workers=0"),
        (["darknet53", "--threads", "100000"], "1 to 256 threads"),
        (["darknet53", "--max-batch-size", "0"], "max_batch_size"),
        (["darknet53", "--http", "0.0.0.0:0"], "token"),
        (["darknet53", "--http", ""], "HOST:PORT"),
        (["darknet53", "--listen-workers", "nonsense"], "tcp://HOST:PORT"),
        (["m=darknet53", "m=darknet53"], "m, m"),
        (["darknet53", "m=darknet53", "--labels", "names"], "--labels"),
        (["darknet53", "--log-dir", "/dev/null/x"], "--log-dir /dev/null/x"),
    ],
)
def test_bad_arguments_end_with_one_line(refuses, arguments, words):
    where = [] if "--http" in arguments else ["--http", "127.0.0.1:0"]
    refuses(f".*{re.escape(words)}.*", "serve", *arguments, *where)


def test_an_address_in_use_is_named_by_its_option_and_hides_no_wrong_model(refuses):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        http, listen = ("--http", address), ("--listen-workers", f"tcp://{address}")
        free = ("--http", "127.0.0.1:0")
        refuses("'no/such/run'", "serve", "no/such/run", *http)
        refuses(f"--http.*{address}", "serve", "darknet53", *http)
        refuses(f"--listen-workers.*{address}", "serve", "darknet53", *free, *listen)


def test_a_model_whose_files_are_damaged_is_bad_input(start, net, tmp_path):
    (weights,) = net.directory.glob("*.weights")
    weights.write_bytes(weights.read_bytes()[:-4])
    where = ("--http", "127.0.0.1:0", "--log-dir", str(tmp_path / "logs"))
    command = start("serve", net.source, "--workers", "1", *where)
    assert command.ends() == 2, command.stderr
    last = command.stderr.splitlines()[-1]
    assert str(weights) in last
    assert "(logs: " in last


def test_all_processes_of_a_killed_gateway_end_and_the_log_of_a_killed_worker_stays(
    serve, net, tmp_path, eventually
):
    pool = serve(net.source, "--workers", "2", "--log-dir", str(tmp_path / "logs"))
    workers = pool.all_workers(2)
    assert set(pool.command.children) == {"fork-server", *workers}
    os.kill(workers["worker-0"], signal.SIGKILL)
    said = pool.command.says(r"worker-0: .*code -9 \(log: (\S+)\)")
    children = pool.command.children.values()
    pool.command.process.kill()
    pool.command.ends()
    eventually(lambda: not any(Path(f"/proc/{each}/exe").exists() for each in children))
    log = Path(said[1])
    assert log.is_relative_to(tmp_path / "logs")
    assert f"loaded model={net.name} version=1" in log.read_text()


def test_a_pool_starts_answers_and_ends_without_a_fork_server(serve, net, expected, eventually):
    pool = serve(net.source, "--workers", "2", packages=OTHER_SYSTEM)
    workers = pool.all_workers(2)
    assert pool.command.children == workers
    os.kill(workers["worker-0"], signal.SIGKILL)
    eventually(lambda: pool.workers().get("worker-0") not in (None, workers["worker-0"]))
    with Client(pool.address, timeout_s=60) as client:
        np.testing.assert_array_equal(client.infer(net.name, ROWS[:8]).probabilities, expected[:8])
        assert client.reload(net.name, timeout_s=60) == 2
    workers = pool.all_workers(2)
    pool.command.process.kill()
    eventually(lambda: not any(Path(f"/proc/{each}/exe").exists() for each in workers.values()))


def test_a_pool_ends_with_the_tests_that_started_it_even_if_these_are_killed(tmp_path, eventually):
    net = write_net(TINY, tmp_path / "net")
    words = "serve", net.source, "--workers", "1", "--http", "127.0.0.1:0"
    tests = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    script = f"""
import sys, time
from pathlib import Path
sys.path[:0] = {tests!r}
from conftest import Command, wait_until
command = Command(Path({str(tmp_path)!r}), {words!r})
wait_until(lambda: "READY" in command.stdout)
print(command.process.pid, *command.child_ids, flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as killed:
        processes = killed.stdout.readline().split()
        killed.kill()
    assert len(processes) >= 3
    eventually(lambda: not any(Path(f"/proc/{int(each)}/exe").exists() for each in processes))
