"""The process that the inference workers of a gateway's host are forked from.

    python -m dist_net.cluster.processes.inference_fork_server

Orders come on stdin, a Unix socket: see ``dist_net.cluster.forking``. Prints ``READY`` on stdout
when it has imported what workers need, and ends when the other end of the socket is closed. A
worker that is forked here starts at once, and takes a quarter of the memory of one that starts by
itself, not counting its buffers.
"""

import socket
import sys
from argparse import Namespace
from collections.abc import Sequence

from dist_net.cluster.entry import READY, entry_point
from dist_net.cluster.forking import fork_on_orders
from dist_net.cluster.processes import inference_worker
from dist_net.cluster.processes.inference_worker import KEPT_BYTES
from dist_net.nn.inference import import_kernels
from dist_net.release import release


def run(_: Namespace) -> int:
    """Forks until nobody orders any more."""
    import_kernels()
    release()  # which takes some milliseconds, once for all workers
    print(READY, flush=True)
    fork_on_orders(socket.socket(fileno=sys.stdin.fileno()), work)
    return 0


def work(words: Sequence[str]) -> int:
    """Does in a forked process what ``processes.inference_worker`` does in one of its own."""
    return entry_point(inference_worker.add_arguments, inference_worker.run, words, KEPT_BYTES)


if __name__ == "__main__":
    sys.exit(entry_point(lambda _: None, run, kept_bytes=KEPT_BYTES))
