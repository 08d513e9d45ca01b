"""Strangers who connect to a parameter server: training goes on, and is kept."""

import re
import socket
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np

from dist_net.ground.checkpoint import read_checkpoint

Start = Callable[..., Any]

DESCRIPTORS = 512
STRANGERS = 600
AT_ONCE = 150  # more than the server keeps, and few enough if it gets no core for a while
DEADLINE_S = 120.0


def wait_until_sent_away(stranger: socket.socket) -> None:
    stranger.settimeout(DEADLINE_S)
    with suppress(ConnectionResetError):
        while stranger.recv(64):
            pass


def test_strangers_do_not_use_up_the_servers_descriptors(
    start: Start, here: Callable[..., Any], counting: str, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    here("keys", "create", keys)
    server = start(
        *("parameter-server", counting, "--epochs", "20", "--json", "--checkpoint-every", "0.2"),
        *("--listen", "tcp://127.0.0.1:0", "--keys", str(keys), "--run-dir", str(tmp_path / "run")),
        prefix=("prlimit", f"--nofile={DESCRIPTORS}"),
    )
    address = server.says(r"--connect (tcp://127.0.0.1:\d+)")[1]
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    with ExitStack() as opened:
        strangers: list[socket.socket] = []
        for number in range(STRANGERS):
            strangers.append(opened.enter_context(socket.create_connection((host, int(port)))))
            if number >= AT_ONCE:
                wait_until_sent_away(strangers[number - AT_ONCE])
        worker = start("worker", counting, "--connect", address, "--keys", str(keys))
        server.result()
        assert worker.ends() == 0
    log = (tmp_path / "run" / "logs" / "parameter-server.log").read_text()
    dropped = r"strangers_dropped .* reason=more than \d+ connections"
    assert re.search(dropped, log)
    assert "checkpoint_failed" not in log
    weights = read_checkpoint(tmp_path / "run" / "checkpoint.safetensors").weights
    np.testing.assert_array_equal(weights, np.float32(-20))
