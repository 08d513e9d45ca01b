"""``dist-net worker``: one training worker, for a server on this host or another."""

from dist_net.cluster.processes.training_worker import add_arguments
from dist_net.cluster.processes.training_worker import train as run

__all__ = ["add_arguments", "run"]
