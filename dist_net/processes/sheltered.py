"""Runs another process, for one that may be killed together with its own children, as Ray's are.

    python sheltered.py MODULE ARGUMENTS...

The other process is then told to end by the system, in order, when this one is killed: it must look
after its parent. It gets SIGTERM from this one, and gives this one its exit code. Imports nothing
of the package, so that it starts at once.
"""

import os
import signal
import subprocess
import sys


def run(module: str, arguments: list[str]) -> int:
    """Runs a module to its end; gives its exit code, or ends by the same signal."""
    parent = ("--parent", str(os.getpid()))
    process = subprocess.Popen([sys.executable, "-P", "-m", module, *parent, *arguments])
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    code = process.wait()
    if code < 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


if __name__ == "__main__":
    sys.exit(run(sys.argv[1], sys.argv[2:]))
