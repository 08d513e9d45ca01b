"""The fork server of a pool: forks workers of the gateway's host, and processes that read models.

Orders arrive on stdin, a Unix socket: see ``fork_on_orders``. It prints ``READY`` after importing
the modules that these need, and ends when the other end of the socket is closed. A forked worker
starts at once, and needs a quarter of the memory of a worker that imports them, buffers aside.
"""

import argparse
import socket
import sys

from dist_net.ground.release import release
from dist_net.nn.inference import import_kernels
from dist_net.processes.entry import READY, entry_point
from dist_net.processes.fork_server import fork_on_orders
from dist_net.serving import model_reading
from dist_net.serving.worker import inference_worker_process

MODULES = {each.__name__: each.main for each in (model_reading, inference_worker_process)}


def run(_: argparse.Namespace) -> int:
    """Fork until the gateway ends."""
    import_kernels("direct_loops")  # which most served nets use
    release()  # takes milliseconds, and is cached for all workers
    print(READY, flush=True)
    orders = socket.socket(fileno=sys.stdin.fileno())
    fork_on_orders(orders, lambda module, words: MODULES[module](words))
    return 0


if __name__ == "__main__":
    sys.exit(entry_point(lambda _: None, run))
