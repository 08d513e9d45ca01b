"""``scripts/bench recovery``: from the death of the server to the next gradient that is applied.

A run's journal tells: a server that goes on writes that it started, and then what it applies.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import monotonic, sleep
from typing import Any

from benchmarks.errors import BenchmarkError
from dist_net.training.server.journal_records import (
    BLOCK_BYTES,
    Applied,
    JournalRecord,
    decode_record,
)

RECIPE = "fashion-mnist"
KILLS = 9
CHECKPOINT_EVERY_S = 5.0
BETWEEN_S = 6.5  # kills, so that they fall anywhere between two checkpoints
PATIENCE_S = 60.0
POLL_S = 0.001


def measure(with_peers: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """``results``, ``peers`` and ``ratios`` as the command line's JSON has them.

    Raises BenchmarkError.
    """
    if with_peers:
        say("no peer is measured: none goes on by itself")
    with TemporaryDirectory() as directory:
        seconds = recoveries(Path(directory), say)
    case = {"fault": "server killed", "kills": KILLS, "checkpoint_every_s": CHECKPOINT_EVERY_S}
    times = {"median_s": round(median(seconds), 3), "max_s": round(max(seconds), 3)}
    return {"results": [case | times], "peers": [], "ratios": {}}


def recoveries(directory: Path, say: Callable[[str], None]) -> list[float]:
    """Seconds from each SIGKILL of the server to the next gradient applied."""
    run = directory / "run"
    options = ["--epochs", "100000", "--checkpoint-every", str(CHECKPOINT_EVERY_S)]
    options += ["--restarts", str(KILLS), "--run-dir", str(run)]
    with (directory / "log").open("wb") as log:
        train = subprocess.Popen(
            [sys.executable, "-P", "-m", "dist_net", "train", RECIPE, *options], stderr=log
        )
    seconds = []
    try:
        wait_until(lambda: isinstance(last_record(run), Applied), train)
        for turn in range(1, KILLS + 1):
            sleep(BETWEEN_S)
            began = monotonic()
            os.kill(server_of(train), signal.SIGKILL)
            wait_until(lambda: not isinstance(last_record(run), Applied), train)
            wait_until(lambda: isinstance(last_record(run), Applied), train)
            seconds.append(monotonic() - began)
            say(f"kill {turn} of {KILLS}: {seconds[-1]:.2f} s")
    finally:
        train.send_signal(signal.SIGINT)
        train.wait(PATIENCE_S)
    return seconds


def last_record(run: Path) -> JournalRecord | None:
    """What the journal ends with; None: nothing that is whole, at this moment."""
    try:
        with (run / "journal").open("rb") as journal:
            size = journal.seek(0, os.SEEK_END)
            if size <= BLOCK_BYTES or size % BLOCK_BYTES:
                return None
            journal.seek(size - BLOCK_BYTES)
            return decode_record(journal.read(BLOCK_BYTES))
    except FileNotFoundError:
        return None


def wait_until(
    holds: Callable[[], bool], train: subprocess.Popen[bytes], patience_s: float = PATIENCE_S
) -> None:
    """Returns as soon as it holds. Raises BenchmarkError when the run ends or it never does."""
    deadline = monotonic() + patience_s
    while not holds():
        if train.poll() is not None or monotonic() > deadline:
            raise BenchmarkError(f"the run did not go on within {patience_s:g} s")
        sleep(POLL_S)


def server_of(train: subprocess.Popen[bytes]) -> int:
    """The process id of the run's server."""
    for thread in Path(f"/proc/{train.pid}/task").iterdir():  # each has children of its own
        for child in (thread / "children").read_text().split():
            if b"parameter_server" in Path(f"/proc/{child}/cmdline").read_bytes():
                return int(child)
    raise BenchmarkError("the run has no server")
