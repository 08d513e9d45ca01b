"""A script between a Ray actor and a server: Ray kills actors together with their children.

    python ray_parent.py MODULE ARGUMENTS...

When this process is killed, the kernel sends SIGTERM to the server, which can end in order. SIGTERM
is passed on to the server, and the server's exit code is returned. The script imports nothing of
the package, so that it starts at once.
"""

import os
import signal
import subprocess
import sys


def run(module: str, arguments: list[str]) -> int:
    """Run a module to its end; return its exit code, or end by the same signal."""
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
