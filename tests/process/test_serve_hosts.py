"""Inference workers of other hosts: those of `test_hosts`, which share no files here either."""

import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.peers import darknet_task
from dist_net.nets.darknet import DarknetNetwork
from dist_net.nets.darknet.configuration import read_configuration
from dist_net.nets.darknet.weights import read_weights
from dist_net.nn import Model
from dist_net.nn.inference import Inference, prepare
from dist_net.serving.worker.loaded_models import PIECE_BYTES
from process import test_hosts

hosts, keys = test_hosts.hosts, test_hosts.keys
SERVER = test_hosts.SERVER

Start = Callable[..., Any]
Eventually = Callable[[Callable[[], Any]], Any]

# Its weights are more than the gateway sends in one piece.
CONFIGURATION = """
[net]
height=28
width=28
channels=1

[connected]
output=2000
activation=leaky

[connected]
output=10
activation=linear

[softmax]
"""
TOKEN, OPERATORS_TOKEN = "the-token-of-a-client", "the-token-of-an-operator"
ROWS = np.random.default_rng(0).random((8, 28, 28, 1), np.float32)

ASK = """
    import sys
    import numpy as np
    from dist_net import Client

    rows, answers, address, token = sys.argv[1:]
    with Client(address, token, timeout_s=30) as client:
        print("model", *(model.name for model in client.models()), flush=True)
        input()
        pending = [client.submit("net", row) for row in np.load(rows)]
        print("asked", flush=True)
        np.save(answers, [each.result().probabilities for each in pending])
"""


@pytest.fixture
def net(tmp_path: Path) -> Path:
    """The directory of a net, of whose files only the gateway's host has any."""
    directory = tmp_path / "net"
    directory.mkdir()
    (directory / "written.cfg").write_text(CONFIGURATION)
    darknet_task.write_net(read_configuration(directory / "written.cfg"), directory)
    (directory / "labels.txt").write_text("".join(f"class {index}\n" for index in range(10)))
    return directory


@pytest.fixture
def expected(net: Path) -> np.ndarray:
    """What the net gives for the rows, computed here."""
    network = DarknetNetwork(read_configuration(net / "net.cfg"))
    model = Model(network, network.input_shape, input_dtype=np.float32)
    weights = read_weights(net / "net.weights", network)
    return Inference(model, prepare(model, weights))(ROWS)


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    """A gateway's file of tokens."""
    path = tmp_path / "tokens"
    path.write_text(f"client {TOKEN}\noperator {OPERATORS_TOKEN}\n")
    return path


@pytest.fixture
def gateway(start: Start, hosts: Any, keys: Path, net: Path, tokens: Path) -> Any:
    """A gateway without workers, on the host ``server``."""
    files = f"net={net / 'net.cfg'},weights={net / 'net.weights'},labels={net / 'labels.txt'}"
    where = ("--http", f"{SERVER}:0", "--listen-workers", f"tcp://{SERVER}:0")
    return start(
        *("serve", files, "--workers", "0", *where, "--keys", str(keys)),
        *("--token-file", str(tokens)),
        prefix=hosts.on("server"),
    )


def without(directories: list[Path]) -> list[str]:
    """What runs a command as if these directories were empty, on a host that it is run on.

    A network namespace is entered by ``ip`` with mounts of its own.
    """
    hide = 'for each in $0; do mount -t tmpfs none "$each"; done; exec "$@"'
    return ["sh", "-ec", hide, " ".join(map(str, directories))]


def clients_address(gateway: Any, eventually: Eventually) -> str:
    """Waits until the gateway is ready; gives what clients connect to."""

    def ready() -> re.Match[str] | None:
        assert gateway.process.poll() is None, gateway.stderr
        return re.search(r"READY http=(\S+)\n", gateway.stdout)

    return str(eventually(ready)[1])


class Asker:
    """A process that asks for the rows, on a host, when told, and leaves the answers in a file."""

    def __init__(self, prefix: list[str], directory: Path, address: str) -> None:
        directory.mkdir(exist_ok=True)
        self._answers, rows = directory / "answers.npy", directory / "rows.npy"
        self._answers.unlink(missing_ok=True)
        np.save(rows, ROWS)
        script = [sys.executable, "-c", textwrap.dedent(ASK), str(rows), str(self._answers)]
        self._process = subprocess.Popen(
            [*prefix, *script, address, TOKEN],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def is_connected(self) -> bool:
        """Waits until it has heard from the gateway."""
        assert self._process.stdout is not None
        return self._process.stdout.readline() == "model net\n"

    def ask(self) -> None:
        """Lets it ask."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def require_right(self, expected: np.ndarray) -> None:
        """Lets it ask if it has not, and waits for the answers, which must be these."""
        said, _ = self._process.communicate("\n", timeout=60)
        assert self._process.returncode == 0, said
        np.testing.assert_allclose(np.load(self._answers), expected, atol=1e-6)


def test_workers_of_other_hosts_come_answer_and_are_cut_off(
    start: Start,
    hosts: Any,
    keys: Path,
    net: Path,
    tokens: Path,
    gateway: Any,
    expected: np.ndarray,
    eventually: Eventually,
    tmp_path: Path,
) -> None:
    workers_address = gateway.says(r"--connect (tcp://\S+)")[1]

    token = gateway.says(r"    echo (\w+) \| dist-net inference-worker\n")[1]

    def worker(host: str, *way_in: str) -> Any:
        return start(
            *("inference-worker", *way_in),
            *("--name", host, "--directory", str(tmp_path / host)),
            prefix=[*hosts.on(host), *without([net, gateway.temporary])],
        )

    def ask(host: str) -> Asker:
        return Asker(hosts.on(host), tmp_path / "asked", address)

    def workers() -> list[str]:
        command = ("status", address, "--token-file", str(tokens), "--json")
        report = start(*command, prefix=hosts.on("server")).result()
        return [each["name"] for each in report["workers"]]

    first = worker("worker-0", "--connect", workers_address, "--keys", str(keys / "worker"))
    address = clients_address(gateway, eventually)
    assert address != workers_address
    (fetched,) = (tmp_path / "worker-0").glob("net.*.prepared")
    assert fetched.stat().st_size > PIECE_BYTES
    ask("worker-1").require_right(expected)
    assert workers() == ["worker-0"]

    port = int(workers_address.rpartition(":")[2])
    assert hosts.connected_ports(gateway.process.pid, "worker-0") == {port}

    # Asked on the gateway's own host while it does not know yet that its only worker is gone.
    asked = ask("server")
    assert asked.is_connected()
    hosts.cut_off("worker-0")
    asked.ask()
    worker("worker-1", token)
    asked.require_right(expected)
    assert workers() == ["worker-1"]
    assert first.ends() == 1
    assert workers_address in first.stderr
    assert "Traceback" not in first.stderr
    ask("worker-1").require_right(expected)
    eventually(lambda: not hosts.connected_ports(gateway.process.pid, "worker-0"))
