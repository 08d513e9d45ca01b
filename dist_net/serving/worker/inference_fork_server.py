"""The fork server of a gateway: it forks the inference workers of the gateway's host.

    python -m dist_net.serving.worker.inference_fork_server

Orders arrive on stdin, a Unix socket: see ``dist_net.processes.forking``. The fork server prints
``READY`` on stdout after importing the modules that workers need, and ends when the other end of
the socket is closed. A forked worker starts at once, and needs a quarter of the memory of a worker
that imports these modules itself, not counting its buffers.
"""

import socket
import sys
from argparse import Namespace
from collections.abc import Sequence

from dist_net.nn.inference import import_kernels
from dist_net.processes.entry import READY, entry_point
from dist_net.processes.forking import fork_on_orders
from dist_net.release import release
from dist_net.serving.worker import inference_worker_process as inference_worker
from dist_net.serving.worker.inference_worker_process import KEPT_BYTES


def run(_: Namespace) -> int:
    """Fork workers until the gateway closes the socket."""
    import_kernels()
    release()  # takes milliseconds, and is cached for all workers
    print(READY, flush=True)
    fork_on_orders(socket.socket(fileno=sys.stdin.fileno()), work)
    return 0


def work(words: Sequence[str]) -> int:
    """Run an inference worker with a command line of these words; return its exit code."""
    return entry_point(inference_worker.add_arguments, inference_worker.run, words, KEPT_BYTES)


if __name__ == "__main__":
    sys.exit(entry_point(lambda _: None, run, kept_bytes=KEPT_BYTES))
