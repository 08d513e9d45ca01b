"""A measured process as the benchmark sees it: started, told what to measure, and ended."""

from __future__ import annotations

import json
import select
import subprocess
import sys
import tempfile
from contextlib import suppress
from importlib.util import find_spec
from typing import Any

from benchmarks import FINDS_BENCHMARKS
from benchmarks.errors import BenchmarkError

DEADLINE_S = 300.0
GRACE_S = 10.0
THREADS = 2

# The caps hold only when they are set before the libraries are loaded.
CAPS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
ENVIRONMENT = {
    "GLOO_SOCKET_IFNAME": "lo",
    "KERAS_BACKEND": "tensorflow",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


def missing_packages(packages: tuple[str, ...]) -> str:
    """Why a peer that needs ``packages`` is left out; empty if it is not."""
    missing = [package for package in packages if find_spec(package) is None]
    return f"{' and '.join(missing)} not installed" if missing else ""


class PeerProcess:
    """``python -m benchmarks.MODULE ARGUMENT...``, waiting for orders: see `orders.obey`.

    A context manager: the process ends with it. ``threads``: what libraries may use at most.
    """

    def __init__(
        self,
        module: str,
        *arguments: object,
        threads: int = THREADS,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        words = map(str, arguments)
        self._command = [sys.executable, "-m", f"benchmarks.{module}", *words]
        self._deadline_s = deadline_s
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            self._command,
            env=FINDS_BENCHMARKS | ENVIRONMENT | dict.fromkeys(CAPS, str(threads)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )

    def __enter__(self) -> PeerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def order(self, name: str, **details: Any) -> Any:
        """What the process answers to an order.

        Raises BenchmarkError if it ends instead, or does not answer within the deadline.
        """
        orders, answers = self._process.stdin, self._process.stdout
        assert orders is not None
        assert answers is not None
        with suppress(BrokenPipeError):  # it has ended: what it said about that is read below
            orders.write(json.dumps({"order": name, **details}).encode() + b"\n")
            orders.flush()
        if not select.select([answers], [], [], self._deadline_s)[0]:
            self._process.kill()
            raise BenchmarkError(
                f"{self._said(name, details)} was not answered within {self._deadline_s:g} s"
            )
        line = answers.readline()
        if not line.endswith(b"\n"):
            raise BenchmarkError(f"{self._said(name, details)} failed: {self._last_words()}")
        return json.loads(line)

    def close(self) -> None:
        """Ends the process, by force if it does not follow; harmless when it has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):  # an order that it did not live to read
            self._process.stdin.close()
        try:
            self._process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def _said(self, name: str, details: dict[str, Any]) -> str:
        told = " ".join([name, *(f"{key}={value}" for key, value in details.items())])
        return f"{' '.join(self._command[2:])}: the order {told!r}"

    def _last_words(self) -> str:
        code = self._process.wait(GRACE_S)
        self._errors.seek(0)
        text = self._errors.read().decode(errors="replace").strip()
        return f"exit code {code}: {text.rpartition(chr(10))[2]}"
